"""Several workers on one study: the same arms as one alone, no round twice, a lost one's trial taken up."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from test_sweep import Told, run, timeless
from toy import ToyEngine

from colever.errors import BudgetExhausted, LeverError, StoreError, UsageError
from colever.loading import load_config
from colever.locks import locks_of
from colever.optimizers import workers as module
from colever.optimizers.ledger import Ledger
from colever.optimizers.study import find_study
from colever.optimizers.workers import FLYING, Workers
from colever.reported import StudyReport
from colever.tracking.report_json import to_json
from colever.types import Candidate, Cost, Evaluation, RoundRecord


def side_by_side(*calls: Callable[[], StudyReport]) -> list[StudyReport]:
    """Their reports, or the first error, of calls that run at once."""
    found: list[Any] = [None] * len(calls)

    def work(place: int) -> None:
        try:
            found[place] = calls[place]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            found[place] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return found


def started(home: Path) -> list[str]:
    """The finished rounds by key."""
    return sorted(p.parent.name for p in (home / "rounds").glob("*/record.json"))


@pytest.mark.parametrize("database", ["", "sqlite:///{}/shared.db"], ids=["files", "leases"])
def test_two_workers_end_with_the_table_of_one(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[str] = []
    alone = run(tmp_path / "alone", on_update=lambda: updates.append("alone"))
    monkeypatch.setenv("COLEVER_DATABASE", database.format(tmp_path))
    told = [Told(), Told()]
    reports = side_by_side(
        *(lambda t=t: run(tmp_path / "both", tracker=t, on_update=lambda: updates.append("both")) for t in told)
    )
    for report in reports:
        assert timeless(to_json(report)) == timeless(to_json(alone))
    assert updates.count("both") == updates.count("alone")  # no round was run twice
    assert started(tmp_path / "both") == started(tmp_path / "alone")
    assert (tmp_path / "both" / "optuna.db").exists() == (not database)


def test_workers_share_the_trials_out(tmp_path: Path) -> None:
    told, second = [Told(), Told()], threading.Event()
    both_pull = threading.Barrier(2, timeout=60)

    def meet() -> None:  # in its first update each worker waits for the other to be in one
        if not second.is_set():
            both_pull.wait()
            second.set()

    side_by_side(
        *(lambda t=t: run(tmp_path, trials=2, tracker=t, on_update=meet, schedules=["w", "p,w"]) for t in told)
    )
    ran = [{e[1] for e in t.events if e[0] == "trial"} for t in told]
    assert ran[0] | ran[1] == {0, 1}


def test_a_failure_in_one_worker_leaves_the_others_their_trials(tmp_path: Path) -> None:
    def fail() -> None:
        raise LeverError("no luck")

    reports = side_by_side(lambda: run(tmp_path, on_update=fail), lambda: run(tmp_path, on_update=fail))
    for report in reports:
        assert [arm.schedule for arm in report.arms] == ["p"]
        assert report.table["weights"].score is None


def test_a_worker_that_joins_late_does_not_try_again_what_just_failed(tmp_path: Path) -> None:
    failed, joined = threading.Event(), threading.Event()

    def fail() -> None:
        if failed.is_set():  # in the second trial, that the other one may join
            joined.wait(60)
        failed.set()
        raise LeverError("no luck")

    def late() -> StudyReport:
        failed.wait(60)
        told = Told()
        told.trial_started = lambda *_: joined.set()  # type: ignore[method-assign]
        return run(tmp_path, tracker=told, on_update=fail, schedules=["w", "w,p", "p", "p,w"])

    reports = side_by_side(lambda: run(tmp_path, on_update=fail, schedules=["w", "w,p", "p", "p,w"]), late)
    for report in reports:
        assert len(report.failures) == 3
        assert not any("second time" in note for note in report.notes)


def test_a_worker_with_other_settings_is_refused_before_a_trial_has_ended(tmp_path: Path) -> None:
    refused: list[str] = []

    def join() -> None:
        if not refused:
            with pytest.raises(UsageError, match=r"made with other settings \(seed was 0, now 1\)") as raised:
                run(tmp_path, 1, seed=1, study="one", schedules=["w"])
            refused.append(str(raised.value))

    report = run(tmp_path, 1, on_update=join, study="one", schedules=["w"])
    assert refused
    assert report.finished
    assert not report.failures


def test_workers_that_start_at_once_leave_a_manifest(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=60)

    class Slow(ToyEngine):  # is asked for its digest when it has joined
        @property
        def digest(self) -> str:  # type: ignore[override]
            if not done:
                both.wait()
                done.append(1)
            return "toy-engine"

    done: list[int] = []
    side_by_side(*(lambda: run(tmp_path, trials=1, engine=Slow()) for _ in range(2)))
    assert find_study(tmp_path, "toy").manifest()["config"]["trials"] == 1


def test_a_cap_ends_the_search_of_both(tmp_path: Path) -> None:
    reports = side_by_side(*(lambda: run(tmp_path, **{"budget.rollouts": 310}) for _ in range(2)))
    assert all(report.cost.rollouts <= 310 for report in reports)
    assert timeless(to_json(reports[0]))["arms"] == timeless(to_json(reports[1]))["arms"]
    more = run(tmp_path)
    assert [arm.schedule for arm in more.arms] == ["p", "w", "p,w", "w,p"]


def test_a_cap_holds_for_workers_with_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path}/shared.db")
    reports = side_by_side(*(lambda: run(tmp_path, **{"budget.rollouts": 310}) for _ in range(2)))
    assert all(report.cost.rollouts <= 310 for report in reports)
    assert timeless(to_json(reports[0]))["arms"] == timeless(to_json(reports[1]))["arms"]


def test_a_worker_that_has_lost_its_trial_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is another's, as after a sleep of more than a lease."""
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path}/shared.db")

    def lose() -> None:
        with sqlite3.connect(tmp_path / "shared.db", timeout=60) as other:
            other.execute("UPDATE colever_leases SET token = 'x', owner = 'x' WHERE name LIKE '%trial-%'")
        locks_of(tmp_path).renew()  # type: ignore[attr-defined]

    with pytest.raises(StoreError, match=r"trial-1 was lost.*run the same command again"):
        run(tmp_path, on_update=lose)


def test_the_trial_of_a_worker_that_died_is_taken_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_update=lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert study.n_trials == 4  # one ended, one was interrupted, two are lined up
    report = run(tmp_path)
    assert [arm.trial for arm in report.arms] == [0, 1, 2, 3]


def test_locks_say_who_is_there(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    assert one.others() == 0
    with one.joined():
        assert one.others() == 0
        with other.joined():
            assert (one.others(), other.others()) == (1, 1)
            with other.writing():
                assert other.take(3)
                assert other.take(3)
            assert not one.take(3)
            assert one.elsewhere() == {3}
            assert not other.elsewhere()
        assert one.others() == 0
        assert one.take(3)  # let go of when the other one left


def test_workers_know_what_the_others_spent(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    with one.joined(), other.joined():
        assert one.published() == {}
        other.publish({"k1": Cost(rollouts=3), FLYING: Cost(rollouts=1)})
        assert sum(one.published().values(), Cost()) == Cost(rollouts=4)
        assert other.published() == {}
        path = next((tmp_path / ".locks").glob("*.json"))
        path.write_text(path.read_text().replace(str(os.getpid()), str(2**22 + 1)))  # its process is gone
        assert one.published() == {}
        path.write_text(path.read_text().replace(str(2**22 + 1), str(os.getpid())))  # or its number another's by now
    path.with_name("worker-7.json").write_text("{}")
    with one.joined():
        assert not path.with_name("worker-7.json").exists()
        assert one.published() == {}


def ledger(workers: Workers, cap: int) -> Ledger:
    """With base booked, at 60 rollouts."""
    made = Ledger(load_config(flags={"task": "toy"}, overrides={"budget.rollouts": cap}), workers)
    made.budget.reserve(rollouts=60)
    made.budget.charge(Cost(rollouts=60))
    made.open()
    return made


def round_of(key: str, rollouts: int) -> RoundRecord:
    dev, base = Evaluation("dev", (), (), (), {}, {}), Candidate({})
    return RoundRecord(key, "prompt", {}, 0, base, base, dev, dev, False, Cost(rollouts=rollouts))


def test_a_round_that_another_worker_paid_for_fits_where_it_fitted_there(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    with one.joined(), other.joined():
        first, second = ledger(one, 200), ledger(other, 200)
        first.budget.charge(Cost(rollouts=140))
        first.end_round(round_of("k", 140), stored=False)
        assert not second.end_round(round_of("k", 140), stored=True)
        assert (second.budget.spent, second.elsewhere()) == (Cost(rollouts=200), Cost())
        with pytest.raises(BudgetExhausted):
            second.end_round(round_of("another study's", 1), stored=True)


def test_base_counts_once_for_all_workers_and_one_may_join_near_the_cap(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    with one.joined(), other.joined():
        first = ledger(one, 200)
        first.budget.charge(Cost(rollouts=140))
        second = ledger(other, 200)
        assert first.elsewhere() == Cost()
        assert second.elsewhere() == Cost(rollouts=140)


def test_what_a_worker_has_reserved_counts_before_it_is_spent(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    with one.joined(), other.joined():
        first, second = ledger(one, 200), ledger(other, 200)
        first.budget.reserve(rollouts=100)
        with pytest.raises(BudgetExhausted, match="160 spent, the next batch needs 50"):
            second.budget.reserve(rollouts=50)
        first.budget.charge(Cost(rollouts=90))  # fewer than were reserved
        first.end_round(round_of("k", 90), stored=False)
        second.budget.reserve(rollouts=50)


def test_what_a_worker_spent_counts_when_it_is_gone(tmp_path: Path) -> None:
    one, other = Workers(tmp_path), Workers(tmp_path)
    with one.joined():
        first = ledger(one, 200)
        with other.joined():
            second = ledger(other, 200)
            second.budget.charge(Cost(rollouts=70))
            second.end_round(round_of("k", 70), stored=False)
            second.budget.charge(Cost(rollouts=8))
            assert first.elsewhere() == Cost(rollouts=78)
        assert first.elsewhere() == Cost(rollouts=70)  # its pull is taken up, and then counts what it had done
        assert not first.end_round(round_of("k", 70), stored=True)
        assert (first.budget.spent, first.elsewhere()) == (Cost(rollouts=130), Cost())


def test_there_is_an_end_to_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    with (
        Workers(tmp_path).joined(),
        pytest.raises(StoreError, match="1 workers run this study already"),
        Workers(tmp_path).joined(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.*cannot be made"):
        Workers(tmp_path / "file" / "study")


class Served(Told):
    """As of a server that many may tell at once; what one that was killed had begun to tell is in ``unfinished``."""

    concurrent = True

    def __init__(self, unfinished: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.unfinished = unfinished

    def told(self) -> set[int]:
        return {e[1] for e in self.events if e[0] == "ended"} - self.unfinished


def test_a_server_is_told_while_another_worker_writes(tmp_path: Path) -> None:
    writer = Workers.of(tmp_path, "toy")
    held: list[bool] = []

    class Slow(Served):
        def round_finished(self, *event: Any, **more: Any) -> None:
            lock = writer.writing()  # free, as for any other worker that would write now
            held.append(not lock.take())
            if not held[-1]:
                lock.release()
            super().round_finished(*event, **more)

    run(tmp_path, study="toy", tracker=Slow())
    assert held
    assert not any(held)


def test_what_a_killed_worker_did_not_tell_is_told_at_the_end(tmp_path: Path) -> None:
    told = Served(unfinished=frozenset({2}))
    report = run(tmp_path, tracker=told)
    assert report.finished
    ended = [e[1] for e in told.events if e[0] == "ended"]
    assert ended == [0, 1, 2, 3, 2]
    assert [e[1:3] for e in told.events if e[0] == "round"][-2:] == [(2, 0), (2, 1)]


def test_a_failure_that_a_killed_worker_did_not_tell_is_told_at_the_end(tmp_path: Path) -> None:
    def fail() -> None:
        raise LeverError("no luck")

    told = Served(unfinished=frozenset({1}))
    report = run(tmp_path, tracker=told, on_update=fail, schedules=["p", "w"], trials=2)
    assert len(report.failures) == 1
    assert [e[1:] for e in told.events if e[0] == "ended"] == [(0, "complete"), (1, "failed"), (1, "failed")]


def test_a_worker_that_lost_its_trial_writes_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[bool] = []
    check = Workers.check

    def checked(workers: Workers) -> None:
        check(workers)
        if lost:
            raise StoreError("this process's hold on trial-0 was lost")

    class Asleep(Served):
        def round_finished(self, *event: Any, **more: Any) -> None:
            super().round_finished(*event, **more)
            lost.append(True)

    monkeypatch.setattr(Workers, "check", checked)
    with pytest.raises(StoreError, match="hold on trial-0 was lost"):
        run(tmp_path, tracker=Asleep(), schedules=["p"], trials=1)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [t.intermediate_values for t in study.trials] == [{}]
