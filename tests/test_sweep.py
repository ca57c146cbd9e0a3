"""A whole study on hand-written parts: arms first, search after, restarts, caps, locks, reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.errors import ColeverError, StoreError, UsageError
from colever.loading import load_config
from colever.optimizers.attribution import report_of
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.study import StudyFolder, find_study, same_task
from colever.optimizers.sweep import sweep
from colever.optimizers.tracker import NullTracker
from colever.reported import StudyReport
from colever.tracking.report_json import to_json
from colever.types import RoundRecord, TrialRecord

SMALL = {"prompt.candidates": 2, "prompt.screen": 8, "prompt.examples": 16, "prompt.demos": 2}


class Told(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def study_started(
        self, study: str, task: str, model: str, config: Mapping[str, Any], plan: str, *rest: Any, **more: Any
    ) -> None:
        self.events.append(("study", study, plan))

    def trial_started(self, number: int, schedule: str, settings: Mapping[str, Any]) -> None:
        self.events.append(("trial", number, schedule))

    def round_finished(self, trial: int, index: int, record: RoundRecord, reused: bool, rollouts: Any = ()) -> None:
        self.events.append(("round", trial, index, record.lever, reused))

    def trial_finished(self, record: TrialRecord) -> None:
        self.events.append(("ended", record.number, record.state))

    def study_stopped(self, reason: str, *, alone: bool = True) -> None:
        self.events.append(("stopped", reason))


def run(
    home: Path, trials: int = 4, tracker: Any = None, on_update: Any = lambda: None, **overrides: Any
) -> StudyReport:
    task = overrides.pop("task", None) or toy_task()
    engine = overrides.pop("engine", None) or ToyEngine()
    config = load_config(flags={"task": "toy", "model": "toy", "trials": trials}, overrides=SMALL | overrides)
    return sweep(
        config, task, engine, home, tracker=tracker,
        levers=lambda p, w: {"prompt": PromptLever(p), "weights": ToyWeightLever(ToyWeightSettings(), on_update)},
    )  # fmt: skip


def timeless(value: Any) -> Any:
    """Without seconds, which no two runs share."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


def test_the_arms_come_first_and_share_their_rounds(tmp_path: Path) -> None:
    told = Told()
    report = run(tmp_path, tracker=told)
    assert [e[1:] for e in told.events if e[0] == "trial"] == [(0, "p"), (1, "w"), (2, "p,w"), (3, "w,p")]
    assert [e[3:] for e in told.events if e[0] == "round"] == [
        ("prompt", False), ("weights", False),
        ("prompt", True), ("weights", False),
        ("weights", True), ("prompt", False),
    ]  # fmt: skip
    assert [arm.schedule for arm in report.arms] == ["p", "w", "p,w", "w,p"]
    assert report.finished
    shared = sum(arm.cost.rollouts for arm in report.arms)
    assert report.cost.rollouts < shared  # a shared round is charged to each arm, once to the sweep


def test_the_report_has_the_public_form(tmp_path: Path) -> None:
    report = run(tmp_path)
    data = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert set(data["table"]) == {"base", "prompt", "weights", "both"}
    for cell in data["table"].values():
        assert cell["low"] <= cell["score"] <= cell["high"]
        assert cell["gold_low"] <= cell["gold"] <= cell["gold_high"]
    assert {"value", "low", "high", "resolved"} <= set(data["effects"]["interaction"])
    assert {"order", "gain", "prompt_score"} <= set(data["effects"])
    assert [t["at"] for t in data["thresholds"]] == [0.7, 0.8, 0.9]
    assert set(data["parts"]) == {"p*,w0", "p0,w*", "p*,w*"}
    assert set(data["watched"]["far"]) == {"base", "prompt", "weights", "both"}
    assert data["table"]["base"]["score"] < data["table"]["both"]["score"]


def test_run_again_it_computes_nothing_and_says_the_same(tmp_path: Path) -> None:
    first, engine = run(tmp_path), ToyEngine()
    assert run(tmp_path, engine=engine) == first
    assert engine.calls == 0
    assert report_of(find_study(tmp_path, "toy")) == report_of(find_study(tmp_path, "toy-toy-s0")) == first


def test_after_the_arms_it_searches_and_a_longer_study_goes_on(tmp_path: Path) -> None:
    at_once = run(tmp_path / "one", trials=7)
    run(tmp_path / "two", trials=4)
    run(tmp_path / "two", trials=6)
    in_parts = run(tmp_path / "two", trials=7)
    assert len(at_once.arms) == 7
    assert timeless(to_json(in_parts)) == timeless(to_json(at_once))
    first = [arm for arm in at_once.arms if arm.trial < 4]
    assert [arm.schedule for arm in first] == ["p", "w", "p,w", "w,p"]


@pytest.mark.parametrize("after", [1, 5])
def test_an_interrupted_study_ends_with_the_same_report(tmp_path: Path, after: int) -> None:
    whole = run(tmp_path / "whole", trials=5)
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt

    told = Told()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", trials=5, on_update=interrupt, tracker=told)
    assert told.events[-1] == ("stopped", "interrupted")
    folder = StudyFolder(tmp_path / "cut", "toy-toy-s0")
    assert not report_of(folder).finished
    assert report_of(folder).table["base"].score is None
    assert timeless(to_json(run(tmp_path / "cut", trials=5))) == timeless(to_json(whole))


def broken() -> None:
    raise ValueError("no luck")


def test_a_failed_trial_leaves_the_others_and_is_tried_again(tmp_path: Path) -> None:
    told = Told()
    failed = run(tmp_path, on_update=broken, tracker=told)
    assert [e[1:] for e in told.events if e[0] == "ended"] == [
        (0, "complete"), (1, "failed"), (2, "failed"), (3, "failed"),
    ]  # fmt: skip
    assert len(failed.failures) == 3
    assert "Trial 1 failed: the weights lever failed: ValueError: no luck" in failed.failures[0]
    stored = report_of(StudyFolder(tmp_path, "toy-toy-s0"))
    assert [arm.schedule for arm in stored.arms] == ["p"]
    assert stored.table["prompt"].score is not None
    assert any("Trial 1 failed: the weights lever" in note for note in stored.notes)
    report = run(tmp_path)
    assert sorted(arm.schedule for arm in report.arms) == ["p", "p,w", "w", "w,p"]
    assert all(arm.trial not in (1, 2, 3) for arm in report.arms)


def test_a_trial_that_fails_twice_is_left_out(tmp_path: Path) -> None:
    assert run(tmp_path, on_update=broken).failures
    report = run(tmp_path, on_update=broken)
    assert not report.failures
    assert [arm.schedule for arm in report.arms] == ["p"]
    assert sum("failed a second time" in note for note in report.notes) == 3
    assert timeless(to_json(run(tmp_path, on_update=broken))) == timeless(to_json(report))


def test_what_failed_pulls_spent_stays_on_the_ledger(tmp_path: Path) -> None:
    failing, calls = iter([False, True]), []

    def second() -> None:
        calls.append(1)
        if next(failing, False):
            raise ValueError("no luck")

    failed = run(tmp_path, trials=2, schedules=["p", "w"], on_update=second)
    assert len(failed.failures) == 1
    assert failed.cost.trained_tokens == 100  # one update before the one that failed
    again = run(tmp_path, trials=2, schedules=["p", "w"])
    assert [arm.schedule for arm in again.arms] == ["p", "w"]
    assert again.cost.trained_tokens == 100 + 300
    prompt = next(arm for arm in again.arms if arm.schedule == "p")
    cap = prompt.cost.rollouts + 60 + 8 + 24 + 59  # all but the dev evaluation's last rollout
    other = tmp_path / "other"
    failing = iter([False, True])
    run(other, trials=2, schedules=["p", "w"], on_update=second)
    capped = run(other, trials=2, schedules=["p", "w"], **{"budget.rollouts": cap})
    assert [arm.schedule for arm in capped.arms] == ["p"]


def test_a_rounds_own_cap_fails_its_trial_and_leaves_the_others(tmp_path: Path) -> None:
    report = run(tmp_path, schedules=["p", "w"], trials=2, **{"round_budget.rollouts": 100})
    assert [arm.schedule for arm in report.arms] == ["w"]
    assert "round_budget: rollouts=100 is reached" in report.failures[0]


def test_reading_test_is_a_cost_of_its_own(tmp_path: Path) -> None:
    report = run(tmp_path, trials=1)
    assert report.reading_cost.rollouts == 2 * 80 + 2 * 20  # base and prompt, on test and on the watched split
    assert to_json(report)["reading_cost"]["rollouts"] == report.reading_cost.rollouts


def test_an_unfinished_study_shows_which_arms_were_pulled(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_update=interrupt)
    table = to_json(report_of(StudyFolder(tmp_path, "toy-toy-s0")))["table"]
    assert {name: cell["pulled"] for name, cell in table.items()} == {
        "base": True, "prompt": True, "weights": False, "both": False,
    }  # fmt: skip


def test_a_broken_study_does_not_hide_the_others(tmp_path: Path) -> None:
    whole = run(tmp_path, trials=1)
    shutil.copytree(tmp_path / "studies" / whole.study, tmp_path / "studies" / "other")
    (tmp_path / "studies" / "other" / "study.json").write_text("{")
    assert find_study(tmp_path, "toy").name == whole.study
    with pytest.raises(StoreError, match="other"):
        find_study(tmp_path, "other")
    with pytest.raises(UsageError, match="not readable: other"):
        find_study(tmp_path, "nope")


def test_a_task_file_may_be_spelled_in_several_ways() -> None:
    assert same_task("x.py:task", "./x.py:task")
    assert same_task("x.py:task", f"{Path('x.py').resolve()}:task")
    assert not same_task("x.py:task", "x.py:other")
    assert not same_task("routing", "lookup")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("")
    with pytest.raises(StoreError, match="studies"):
        run(tmp_path)


def test_a_cap_ends_the_study_with_what_it_has(tmp_path: Path) -> None:
    report = run(tmp_path, **{"budget.rollouts": 60 + 250})
    assert report.finished
    assert [arm.schedule for arm in report.arms] == ["p"]
    assert "Stopped in trial 1" in report.notes[0]
    assert report.cost.rollouts <= 310
    assert report.table["weights"].score is None
    assert set(report.effects) == {"gain", "gain_score"}
    more = run(tmp_path)
    assert [arm.schedule for arm in more.arms] == ["p", "w", "p,w", "w,p"]


def test_a_cap_on_less_than_base_is_said(tmp_path: Path) -> None:
    with pytest.raises(ColeverError, match="rollouts=10 is reached"):
        run(tmp_path, **{"budget.rollouts": 10})


def test_another_configuration_needs_another_name(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UsageError, match=r"prompt.demos was 2, now 3.*--study"):
        run(tmp_path, **{"prompt.demos": 3})
    with pytest.raises(UsageError, match="its task changed"):
        run(tmp_path, task=toy_task(max_tokens=9))


def test_a_corrupt_round_is_named_and_mended_by_deleting_it(tmp_path: Path) -> None:
    whole = run(tmp_path)
    record = next((tmp_path / "rounds").glob("*/record.json"))
    good = record.read_text()
    record.write_text(good[:-30])
    with pytest.raises(StoreError, match=str(record.parent)):
        run(tmp_path)
    with pytest.raises(StoreError, match=str(record.parent)):
        report_of(find_study(tmp_path, "toy"))
    shutil.rmtree(record.parent)  # as the message says
    mended = run(tmp_path)
    assert mended.table == whole.table
    assert mended.effects == whole.effects


def test_a_study_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    (tmp_path / "studies" / whole.study / "study.json").unlink()
    assert run(tmp_path) == whole


def test_a_study_deleted_and_made_otherwise_starts_anew(tmp_path: Path) -> None:
    whole = run(tmp_path)
    shutil.rmtree(tmp_path / "studies" / whole.study)
    other = run(tmp_path, **{"prompt.demos": 3})
    assert len(other.arms) == len(whole.arms)


def test_a_corrupt_study_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreError, match=r"optuna\.db"):
        run(tmp_path)


def test_a_searched_setting_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights\.speed"):
        run(tmp_path, search={"weights.speed": [1, 2]})
    with pytest.raises(UsageError, match="must lie in the range"):
        run(tmp_path, search={"weights.updates": [1, 2]})


def test_a_study_of_one_arm_has_no_shares(tmp_path: Path) -> None:
    report = run(tmp_path, trials=1, schedules=["w,p,w,p"])
    assert report.winner == "w,p,w,p"
    assert report.table["both"].score is not None
    assert report.table["weights"].score is not None  # the prefix w
    assert report.table["prompt"].score is None
    assert "interaction" not in report.effects


def test_an_unknown_study_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none yet"):
        find_study(tmp_path, "nope")
    run(tmp_path)
    with pytest.raises(UsageError, match="toy-toy-s0"):
        find_study(tmp_path, "nope")


def test_more_trials_later_still_begin_with_the_arms(tmp_path: Path) -> None:
    run(tmp_path, trials=2)
    report = run(tmp_path, trials=6)
    assert [arm.schedule for arm in report.arms] == ["p", "w", "p,w", "w,p", "p,w,p", "w,p,w"]


def test_the_default_sampler_proposes_the_same_after_a_restart(tmp_path: Path) -> None:
    """Twelve trials: the arms, two random draws, and some of the Gaussian process's own."""
    short = {"schedules": ["p", "w", "p,w"], "max_rounds": 2, "prompt.screen": 4, "prompt.examples": 4}
    whole = run(tmp_path / "whole", trials=12, **short)
    run(tmp_path / "cut", trials=10, **short)
    again = run(tmp_path / "cut", trials=12, **short)
    assert json.dumps(timeless(to_json(again))) == json.dumps(timeless(to_json(whole)))
    drawn = {json.dumps(settings) for settings in settings_of(tmp_path / "whole")[3:]}
    assert len(drawn) == 9  # no two alike


def settings_of(home: Path) -> list[Any]:
    folder = StudyFolder(home, "toy-toy-s0")
    state = folder.state()
    assert state is not None
    return [[trial.schedule, dict(trial.settings)] for trial in state.trials]


def test_trials_of_equal_rollouts_search_the_split_and_go_on(tmp_path: Path) -> None:
    settings = {"trial_rollouts": 400, "search": "wide"}
    report = run(tmp_path, trials=9, **settings)
    for arm in report.arms:
        if arm.schedule in ("p", "p,w", "w,p"):  # the toy's weight rounds have a length of their own
            assert arm.cost.rollouts <= 400 + 24 + 60 * (arm.schedule.count(",") + 1)
    trials = find_study(tmp_path, "toy").state().trials
    assert {t.settings["split"] for t in trials[:4]} == {0.25}
    assert len({t.settings["split"] for t in trials}) > 1
    assert timeless(to_json(run(tmp_path, trials=9, **settings))) == timeless(to_json(report))
