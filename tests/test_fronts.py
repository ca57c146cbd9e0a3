"""What can be had for which cost: stops, the front of them, levels by arm, and cost as the objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_attribution import BASE, Records, evaluation, four
from test_sweep import run, timeless
from toy import toy_task

from colever.errors import UsageError
from colever.loading import load_config, parse_pairs
from colever.optimizers.attribution import build_report, choose_winner, planned
from colever.optimizers.fronts import AXES, cost_to, front, levels, places
from colever.optimizers.study import find_study, priced
from colever.tracking.report import footnotes, verdict
from colever.tracking.report_json import to_json
from colever.tracking.tables import tables
from colever.types import Cost, TrialRecord


def stops(trials: list[TrialRecord]):
    return places(BASE, evaluation(0.5), trials, gold=False)


def test_every_round_of_every_trial_is_a_stop_at_its_full_cost() -> None:
    found = stops(four(Records()))
    assert [(p.stop.schedule, p.stop.cost.rollouts, p.arm) for p in found] == [
        ("", 0, "base"),
        ("p", 100, "prompt"),
        ("w", 100, "weights"),
        ("p", 100, "prompt"),
        ("p,w", 200, "both"),
        ("w", 100, "weights"),
        ("w,p", 200, "both"),
    ]


def test_the_front_rises_in_cost_and_score_and_nothing_beats_it() -> None:
    found = stops(four(Records()))
    best = front(found, "rollouts")
    assert [(p.stop.schedule, p.stop.dev_score) for p in best] == [("", 0.5), ("w", 0.7), ("p,w", 0.92)]
    for place in found:
        assert any(
            b.stop.cost.rollouts <= place.stop.cost.rollouts and b.stop.dev_score >= place.stop.dev_score for b in best
        )


def test_a_level_has_the_cheapest_stop_of_each_arm() -> None:
    found = levels(stops(four(Records())), "rollouts", (0.4, 0.7, 0.9, 0.99))
    assert [sorted(level.cheapest) for level in found] == [
        ["base", "both", "prompt", "weights"],
        ["both", "weights"],
        ["both"],
        [],
    ]
    assert found[1].cheapest["weights"].cost.rollouts == 100
    assert found[2].cheapest["both"].schedule == "p,w"


def test_the_cheapest_to_the_target_wins_where_cost_is_the_objective() -> None:
    records = Records()
    trials = [*four(records), records.trial(4, "w,w", [0.91, 0.95], test=0.95)]
    by_cost, by_score = records.state(objective="cost", axis="rollouts"), records.state()
    assert choose_winner(by_score, trials).schedule == "w,w"
    assert choose_winner(by_cost, trials).schedule == "w,w"  # there after one round
    assert cost_to(0.9, trials[4], "rollouts") == 100
    assert cost_to(0.9, trials[2], "rollouts") == 200
    assert cost_to(0.9, trials[3], "rollouts") is None
    assert choose_winner(by_cost, trials[:4]).schedule == "p,w"
    assert choose_winner(replace(by_cost, target=0.99), trials).schedule == "w,w"  # none is there: the best
    report = build_report(by_cost, trials, records)
    assert "the cheapest way to 90 % on dev (200 rollouts)" in verdict(report)


def test_the_winner_stands_out_and_not_what_looks_better_on_another_measure() -> None:
    records = Records(gold=True)
    trials = [*four(records), records.trial(4, "w", [0.9]), records.trial(5, "w", [0.96])]
    golds = tuple(float(i < 96) for i in range(100))  # trial 0 has on gold what the best has on the score
    fooled = replace(trials[0].rounds[0], after=replace(trials[0].rounds[0].after, golds=golds))
    trials[0] = replace(trials[0], rounds=(fooled,), dev=fooled.dev)
    found = tables(build_report(records.state(axis="rollouts"), trials, records))
    assert [row.cells[0] for row in found["trials"].rows if row.style == "best"] == ["5"]
    assert [row.cells[0] for row in found["arms"].rows if row.style == "best"] == ["weights"]
    assert found["front"].columns[-1] == "test gold"
    cost = tables(build_report(records.state(objective="cost", axis="rollouts"), trials, records))
    assert [row.cells[0] for row in cost["trials"].rows if row.style == "best"] == ["4"]
    assert not [row for row in cost["arms"].rows if row.style == "best"]  # w's best is of another trial
    best = min(trials, key=lambda trial: trial.number)
    halfway = build_report(records.state(finished=False), [best, trials[1]], records)
    assert "by weights after 2 trials" in verdict(halfway)  # 70 % of the score, 60 % of gold


def test_a_base_at_the_target_is_no_cheapest_way(tmp_path: Path) -> None:
    report = run(tmp_path, trials=1, objective="cost", axis="rollouts", task=toy_task(target=0.3))
    assert "by prompt, though the base is at 30 % on dev for nothing" in verdict(report)


def test_a_search_for_cost_ends_trials_at_the_target(tmp_path: Path) -> None:
    settings = {"objective": "cost", "axis": "rollouts"}
    report = run(tmp_path, trials=10, **settings)
    assert report.objective == "cost"
    assert report.finished
    for arm in report.arms:
        before = [dev for _, dev in arm.curve[:-1]]
        assert all(dev < report.target for dev in before)  # no round after the target was reached
    there = [arm for arm in report.arms if arm.dev_score >= report.target]
    assert there
    assert sum(r.cost.rollouts for r in report.path) == min(arm.cost.rollouts for arm in there)
    assert timeless(to_json(run(tmp_path, trials=10, **settings))) == timeless(to_json(report))


def test_what_is_read_on_test_is_what_the_report_shows_at_its_price() -> None:
    records = Records()
    trials = []
    for number, seconds in enumerate((50.0, 20.0)):  # the later one is the cheaper
        made = records.trial(number, "p", [0.92])
        rounds = tuple(replace(r, cost=replace(r.cost, seconds=seconds)) for r in made.rounds)
        trials.append(replace(made, rounds=rounds, cost=replace(made.cost, seconds=seconds)))
    state = records.state(objective="cost", axis="dollars", dollars_per_hour=3600.0, schedules=())
    plan = {c.digest for c, split in planned(state, evaluation(0.5), trials) if split == "test"}
    assert trials[1].candidate.digest in plan
    assert BASE.digest in plan
    report = build_report(state, trials, records)
    assert [stop.trial for stop in report.front] == [-1, 1]
    assert sum(r.cost.dollars for r in report.path) == 20.0


def test_front_and_levels_are_in_the_report(tmp_path: Path) -> None:
    report = run(tmp_path, trials=7)
    found = tables(report)
    assert {"front", "levels"} <= set(found)
    assert found["front"].rows[0].cells[0] == "base"
    assert all(stop.test is not None for stop in report.front)  # the front is read on test too
    made = to_json(report)
    assert [level["at"] for level in made["levels"]] == [0.7, 0.8, 0.9]
    assert len(made["front"]) == len(report.front)


def test_the_machines_time_has_a_price_that_may_change(tmp_path: Path) -> None:
    free = run(tmp_path)
    dear = run(tmp_path, dollars_per_hour=3600.0)
    assert free.cost.dollars == 0
    assert dear.cost.dollars == pytest.approx(dear.cost.seconds)
    assert "$" in tables(dear)["trials"].columns
    assert "$" not in tables(free)["trials"].columns
    stored = find_study(tmp_path, "toy")
    assert all(r.cost.dollars == 0 for t in stored.trials(stored.state()) for r in t.rounds)  # no price is stored
    trial = stored.trials(stored.state())[0]
    assert priced(trial, 3600.0).cost.dollars == pytest.approx(trial.cost.seconds)


def test_a_cap_in_dollars_counts_the_machines_time(tmp_path: Path) -> None:
    report = run(tmp_path, dollars_per_hour=3600.0, **{"budget.dollars": 1e-6 + _base_seconds(tmp_path / "other")})
    assert any("dollars=" in note for note in report.notes)
    assert not report.arms


def _base_seconds(home: Path) -> float:
    run(home, trials=1)
    stored = find_study(home, "toy")
    return stored.evaluations(stored.state())(stored.state().base, "dev").cost.seconds / 100


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "cost", "prune": True}, "prune: trials are compared by their scores"),
        ({"objective": "cost", "axis": "dollars"}, "needs a price: set dollars_per_hour"),
        ({"axis": "dollars"}, "needs a price: set dollars_per_hour"),
        ({"axis": "watts"}, "axis"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(tmp_path, **settings)


def test_a_price_that_the_search_goes_by_stays(tmp_path: Path) -> None:
    by_price = {"objective": "cost", "axis": "dollars", "trials": 1}
    run(tmp_path, dollars_per_hour=2.0, **by_price)
    with pytest.raises(UsageError, match=r"dollars_per_hour was 2.0, now 3.0"):
        run(tmp_path, dollars_per_hour=3.0, **by_price)


def test_axes_are_fields_of_the_ledger() -> None:
    cost = Cost(rollouts=1, prompt_tokens=2, completion_tokens=3, trained_tokens=4, flops=5.0, seconds=6.0, dollars=7.0)
    assert {name: of(cost) for name, of in AXES.items()} == {
        "flops": 5.0, "rollouts": 1, "tokens": 9, "seconds": 6.0, "dollars": 7.0,
    }  # fmt: skip


def test_a_study_tells_what_its_weights_did_elsewhere(tmp_path: Path) -> None:
    report = run(tmp_path, elsewhere=[f"{Path(__file__).parent / 'other_task.py'}:task"])
    assert [(c.task, c.arm) for c in report.elsewhere] == [("other", "weights"), ("other", "both")]
    for change in report.elsewhere:
        assert change.change.value == pytest.approx(change.after - change.before)
        assert change.change.low <= change.change.value <= change.change.high
    assert "elsewhere" in tables(report)
    assert to_json(report)["elsewhere"][0]["task"] == "other"
    stored = find_study(tmp_path, "toy")
    assert stored.state().elsewhere["other"].digest
    without = run(tmp_path, elsewhere=[])
    assert not without.elsewhere
    assert not any("do worse" in line for line in footnotes(without))


def test_a_task_elsewhere_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"elsewhere: task file 'gone.py' does not exist"):
        run(tmp_path, elsewhere=["gone.py:task"])


def test_a_task_elsewhere_may_be_given_its_rows(tmp_path: Path) -> None:
    file = Path(__file__).parent / "other_task.py"
    given = load_config(flags={"task": "toy"}, overrides=parse_pairs([f"elsewhere=[{file}:rows=a=b.txt]"], "--set"))
    (tmp_path / "few.txt").write_text("30")
    report = run(tmp_path, trials=2, elsewhere=[f"{file}:rows={tmp_path / 'few.txt'}"])
    assert {(c.task, c.examples) for c in report.elsewhere} == {("other", 30)}
    assert given.elsewhere == (f"{file}:rows=a=b.txt",)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("gsm8k=gone.jsonl", r"^elsewhere: gsm8k=gone.jsonl: no such file; accepted: a file \(.jsonl"),
        ("lookup=x.jsonl", "^elsewhere: lookup=x.jsonl: task 'lookup' makes its own rows; accepted: with"),
    ],
)
def test_rows_elsewhere_that_are_not_there_are_said_of_the_setting(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(tmp_path, elsewhere=[entry])
    assert not (tmp_path / "rounds").exists()
