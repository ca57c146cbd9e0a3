"""The guard against reward hacking: what it counts as false, how often it errs, and what a study does with an alarm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_alternate import Bench
from test_sweep import SMALL, Told, run
from toy import GOOD, ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.config import GuardSettings
from colever.errors import UsageError
from colever.loading import load_config
from colever.looks import Look
from colever.optimizers.adaptive import fixed
from colever.optimizers.attribution import report_of
from colever.optimizers.guard import Rules, look, looks, refused, taken, unhacked, worth_of
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.side_by_side import rollouts_of, with_rollouts
from colever.optimizers.study import find_study
from colever.optimizers.sweep import sweep
from colever.reported import StudyReport
from colever.tasks.rubric import Criterion, Rubric
from colever.tracking.figures import save_all
from colever.tracking.page import to_html
from colever.tracking.report_json import to_json
from colever.tracking.terminal import render
from colever.types import Evaluation

RULES = Rules("warn", shares={"answer": 0.5, "long": 0.25, "form": 0.25}, form={"form": 0.25})
N = 256


def evaluation(
    golds: Sequence[float | None],
    scores: Sequence[float | None],
    criteria: dict[str, float] | None = None,
    fails: int = 0,
) -> Evaluation:
    ids = tuple(f"dev-{i}" for i in range(len(golds)))
    return Evaluation("dev", ids, tuple(scores), tuple(golds), criteria or {}, {}, fails)


def drawn(right: float, long: float, form: float, seed: int = 0, n: int = N) -> Evaluation:
    """A candidate that has each criterion with that chance, the answer within the same examples whoever draws it."""
    rng = np.random.default_rng(seed)
    ease, rest = rng.random(n), np.random.default_rng(seed + 1000).random((2, n))
    parts = {"answer": ease < right, "long": rest[0] < long, "form": rest[1] < form}
    scores = sum(RULES.shares[name] * values for name, values in parts.items())
    means = {name: float(values.mean()) for name, values in parts.items()}
    return evaluation(parts["answer"].astype(float).tolist(), np.asarray(scores).tolist(), means)


def seen(base: Evaluation, child: Evaluation, rules: Rules = RULES, number: int = 1) -> Look:
    found = look(number, base, child, rules)
    assert found is not None
    return found


def test_what_gold_accounts_for_is_not_false() -> None:
    found = seen(drawn(0.3, 0.5, 0.5), drawn(0.9, 0.5, 0.5))
    assert found.gold_gain == pytest.approx(0.6, abs=0.07)
    assert found.score_gain == pytest.approx(0.5 * found.gold_gain)
    assert abs(found.false_gain) < 0.05  # half of the score's own scale, not the whole of gold's
    assert not found.alarm


def test_a_loophole_is_an_alarm_that_names_what_carried_it() -> None:
    base, child = drawn(0.5, 0.1, 0.9), drawn(0.5, 0.9, 0.9)
    found = seen(base, child)
    assert found.alarm
    assert found.false_gain == pytest.approx(0.2, abs=0.03)
    assert next(iter(found.criteria)) == "long"
    assert found.criteria["long"] == pytest.approx(0.25 * (child.by_criterion["long"] - base.by_criterion["long"]))
    assert len(found.gained) == 8
    assert set(found.gained.values()) == {0.25}


def test_a_loophole_is_seen_beside_a_rise_of_gold() -> None:
    found = seen(drawn(0.4, 0.1, 0.9), drawn(0.7, 0.9, 0.9))
    assert found.score_gain < found.gold_gain + 0.1  # the plain difference would hide it
    assert found.alarm


def test_learning_the_form_first_is_no_hack() -> None:
    found = seen(drawn(0.3, 0.5, 0.05), drawn(0.3, 0.5, 1.0))
    assert found.score_gain > 0.2
    assert found.form > 0.2
    assert not found.alarm


@pytest.mark.parametrize("how", ["gate", "stage"])
def test_form_that_a_gate_or_a_stage_holds_the_score_by_is_no_hack(how: str) -> None:
    """Gold reads answers whatever their form: the score rises by what waited for the form alone."""
    form = Criterion("form", len, 0, gate=1.0, form=True) if how == "gate" else Criterion("form", len, 0.2, form=True)
    rubric = Rubric([form, Criterion("answer", len, 0.8, stage=int(how == "stage"))])  # type: ignore[arg-type]
    right, before = np.arange(N) % 5 < 3, np.arange(N) % 7 < 4
    rules = Rules.of(GuardSettings(), rubric)

    def scored(formed: np.ndarray) -> Evaluation:
        values = [{"form": float(f), "answer": float(r)} for f, r in zip(formed, right, strict=True)]
        means = {"form": float(formed.mean()), "answer": float(right.mean())}
        return evaluation(right.astype(float).tolist(), [rubric.compose(v).total for v in values], means)

    found = seen(scored(before), scored(before | (np.arange(N) % 7 == 5)), rules)
    assert found.score_gain > 0.08
    assert found.form > 0.08
    assert not found.alarm


def test_beyond_its_allowance_form_is_a_hack() -> None:
    rules = replace(RULES, shares={"answer": 0.1, "form": 0.9}, form={"form": 0.9})
    form = np.arange(N) % 2
    base = evaluation([0.0] * N, (0.9 * form).tolist(), {"answer": 0.0, "form": 0.5})
    child = evaluation([0.0] * N, [0.9] * N, {"answer": 0.0, "form": 1.0})
    found = seen(base, child, rules)
    assert found.form == rules.form_allowance
    assert found.alarm


def test_answers_that_can_be_read_now_are_form_too() -> None:
    """Half of the base's answers could not be parsed; no criterion is marked as form."""
    base = evaluation([0.0] * N, [0.0, 0.2] * (N // 2), fails=N // 2)
    child = evaluation([0.0] * N, [0.2] * N)
    found = seen(base, child, replace(RULES, form={}))
    assert found.form == pytest.approx(0.1)
    assert found.false_gain == pytest.approx(0, abs=1e-9)


def test_without_gold_there_is_nothing_to_see() -> None:
    scores = [0.5] * N
    assert look(1, evaluation([None] * N, scores), evaluation([None] * N, scores), RULES) is None


def test_examples_without_a_score_are_left_out() -> None:
    base, child = drawn(0.5, 0.1, 0.9), drawn(0.5, 0.9, 0.9)
    holed = evaluation([None, *child.golds[1:]], [None, *child.scores[1:]], dict(child.by_criterion))
    assert seen(base, holed).examples == N - 1
    assert "dev-0" not in seen(base, holed).gained


def test_what_a_right_answer_is_worth() -> None:
    scores, golds = np.array([1.0, 1.0, 0.4, 0.4] * 50), np.array([1.0, 1.0, 0.0, 0.0] * 50)
    assert worth_of(scores, golds) == pytest.approx(0.6)
    assert worth_of(np.full(9, 0.3), np.zeros(9)) == pytest.approx(0.7)  # never right: full marks are counted in
    assert worth_of(np.ones(9), np.ones(9)) == 1.0
    assert worth_of(np.array([0.0] * 90 + [1.0] * 90), np.array([1.0] * 90 + [0.0] * 90)) == 0.0


def test_all_looks_together_stay_below_alpha() -> None:
    base, child = drawn(0.5, 0.3, 0.9), drawn(0.5, 0.5, 0.9)
    levels = [seen(base, child, number=k).level for k in range(1, 200)]
    assert levels[:3] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])
    assert 0.049 < sum(levels) < 0.05
    lows = [seen(base, child, number=k).low for k in range(1, 6)]
    assert lows == sorted(lows, reverse=True)


@pytest.mark.parametrize("n", [64, 256])
def test_false_alarms_are_as_rare_as_promised(n: int) -> None:
    """1,500 trials of three looks each whose false gain is the margin itself, the worst case that is no hack."""
    rng, rules, alarms = np.random.default_rng(7), replace(RULES, margin=0.05, form={}), 0
    for _ in range(1500):
        right, loose = rng.random(n), rng.random(n)
        base = _mixed(right < 0.4, loose < 0.2)
        children = [_mixed(right < 0.4 + 0.1 * k, rng.random(n) < 0.4) for k in (1, 2, 3)]
        alarms += any(seen(base, child, rules, k).alarm for k, child in enumerate(children, 1))
    assert alarms / 1500 < 0.05 + 0.015  # of 0.05 promised; the draws are the same every time


def _mixed(right: Any, loose: Any) -> Evaluation:
    """Score ¾ for the answer, ¼ for what is loose: 20 points more of that are 5 points of false gain."""
    scores = 0.75 * right + 0.25 * loose
    return evaluation(right.astype(float).tolist(), scores.tolist())


# --- what a trial does with it -------------------------------------------------------------------


def worse(example: Any, prediction: Any) -> float:
    """A gold that falls where the toy rubric's score rises."""
    return float(prediction.answer == "no idea")


def guarded(bench: Bench, *schedule: Any, on_hacking: str = "stop") -> Any:
    rules = Rules.of(GuardSettings(on_hacking=on_hacking), bench.evaluator.task.rubric)  # type: ignore[arg-type]
    bench.levers["weights"] = ToyWeightLever(ToyWeightSettings(gain=0.4))
    return rules, bench.run_order(unhacked(rules, fixed(schedule)), refuse=partial(refused, rules=rules))


class Ordered(Bench):
    def run_order(self, order: Any, **more: Any) -> Any:
        from colever.optimizers.alternate import alternate
        from colever.optimizers.budget import Budget

        base = self.evaluator.task.base_candidate()
        return alternate(base, order, self.levers, self.evaluator, self.store, budget=Budget(), **more)


def test_stop_keeps_the_parent_and_ends_the_trial(tmp_path: Path) -> None:
    bench = Ordered(tmp_path, wording="Do what you like.", gold=worse)
    rules, rounds = guarded(bench, "prompt", "weights", "weights")
    assert [r.lever for r in rounds] == ["prompt", "weights"]
    assert not rounds[-1].accepted
    assert rounds[-1].kept == bench.evaluator.task.base_candidate()
    assert bench.store.get(rounds[-1].key).accepted  # type: ignore[union-attr] # what is stored stays pure
    assert looks(rounds, rules)[0] is None  # no better: not looked at


def test_warn_uses_the_same_round_and_goes_on(tmp_path: Path) -> None:
    _, stopped = guarded(Ordered(tmp_path, gold=worse), "weights", "prompt")
    bench = Ordered(tmp_path, wording=GOOD, gold=worse)
    rules, warned = guarded(bench, "weights", "prompt", on_hacking="warn")
    assert len(warned) == 2
    assert warned[0].accepted
    assert replace(warned[0], accepted=False) == stopped[0]
    assert looks(warned, rules)[0] == looks(stopped, rules)[0]
    assert taken(warned, replace(rules, on_hacking="stop"))[0] == stopped[0]


def test_off_and_no_gold_look_at_nothing(tmp_path: Path) -> None:
    rules, rounds = guarded(Ordered(tmp_path, gold=worse), "weights", on_hacking="off")
    assert looks(rounds, rules) == [None]
    rules, rounds = guarded(Ordered(tmp_path, gold=None), "weights")
    assert looks(rounds, rules) == [None]
    assert rounds[0].accepted


def test_an_honest_trial_is_left_alone(tmp_path: Path) -> None:
    rules, rounds = guarded(Ordered(tmp_path), "weights", "prompt")
    assert len(rounds) == 2
    assert all(one is None or not one.alarm for one in looks(rounds, rules))


def study(home: Path, tracker: Any = None, **overrides: Any) -> StudyReport:
    """A study of the toy task whose weight rounds turn many answers, with a gold that falls where they do."""
    config = load_config(flags={"task": "toy", "model": "toy"}, overrides=SMALL | overrides)
    weights = ToyWeightLever(ToyWeightSettings(gain=0.4))
    return sweep(
        config, toy_task(gold=worse), ToyEngine(), home, tracker=tracker,  # type: ignore[arg-type]
        levers=lambda p, w: {"prompt": PromptLever(p), "weights": weights},
    )  # fmt: skip


class Judged(Told):
    def round_judged(self, trial: int, index: int, look: Look) -> None:
        self.events.append(("judged", trial, index, look.alarm))


def test_a_study_that_stops_says_so_and_says_it_again(tmp_path: Path) -> None:
    told = Judged()
    more = {"trials": 2, "schedules": ["w,p", "w"], "guard.on_hacking": "stop"}
    report = study(tmp_path, told, **more)
    assert ("judged", 0, 0, True) in told.events
    assert [e[1:3] for e in told.events if e[0] == "round"] == [(0, 0), (1, 0)]  # no p after the alarm
    assert report.guard is not None
    assert [j.refused for j in report.guard.alarms] == [True]
    assert all(not record.accepted for record in report.path)
    assert study(tmp_path, **more) == report == report_of(find_study(tmp_path, "toy"))
    with pytest.raises(UsageError, match=r"guard\.on_hacking was stop, now warn"):
        study(tmp_path, **{**more, "guard.on_hacking": "warn"})


def test_a_study_that_warns_shows_it_and_may_be_told_not_to(tmp_path: Path) -> None:
    more: dict[str, Any] = {"trials": 1, "schedules": ["w"], "sample_rollouts": 60}
    report = with_rollouts(study(tmp_path, **more), find_study(tmp_path, "toy"))
    assert report.guard is not None
    (judged,) = report.guard.alarms
    assert judged.name == "0.1"
    assert len(judged.rollouts) == 4
    assert all(after.gold <= before.gold for before, after in judged.rollouts.values())  # type: ignore[operator, union-attr]
    assert all(after.total > before.total for before, after in judged.rollouts.values())  # type: ignore[operator, union-attr]
    assert to_json(report)["guard"]["rounds"][0]["alarm"] is True
    page = to_html(report)
    assert "Reward hacking in round 0.1" in page
    assert "Score against truth" in page
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    shown = console.export_text()
    assert "Reward hacking in round 0.1" in shown
    assert "The guard against reward hacking" in shown
    assert {path.name for path in save_all(report, tmp_path / "figures")} >= {"3-rubric-and-gold.png"}
    assert study(tmp_path, **{**more, "guard.on_hacking": "off"}).guard is None


def test_the_evidence_is_of_the_examples_that_gained_most_though_they_are_not_sampled(tmp_path: Path) -> None:
    """Two rollouts of each evaluation are sampled; the child's that gained most are kept beside them."""
    more: dict[str, Any] = {"trials": 1, "schedules": ["w"], "sample_rollouts": 2}
    folder = find_study(tmp_path, "toy") if study(tmp_path, **more) else None
    assert folder is not None
    report = with_rollouts(study(tmp_path, **more), folder)
    assert report.guard is not None
    (judged,) = report.guard.alarms
    sampled = {r.example_id for r in rollouts_of(folder, "base", "dev")}
    shown = {name: pair for name, pair in judged.rollouts.items() if name not in sampled}
    assert set(shown) == set(list(judged.look.gained)[:2]) - sampled != set()
    assert all(before is None and after.total > after.gold for before, after in shown.values())  # type: ignore[operator]
    assert "Its rollout was not kept." in to_html(report)


def test_without_gold_the_report_says_that_it_could_not_look(tmp_path: Path) -> None:
    from colever.tracking.hacking import warnings

    report = run(tmp_path, trials=1, task=toy_task(gold=None))
    assert report.guard is not None
    assert report.guard.blind
    assert "could not look" in next(iter(warnings(report)))


def test_form_is_part_of_a_rubrics_digest() -> None:
    one, other = (Rubric([Criterion("a", len, form=form)]) for form in (False, True))  # type: ignore[arg-type]
    assert one.digest() != other.digest()
    rules = Rules.of(GuardSettings(), other)
    assert rules.form == {"a": 1.0}
    assert rules.shares == {"a": 1.0}
    assert Rules.from_json(asdict(rules)) == Rules.from_json({**asdict(rules), "form": ["a"]}) == rules
    assert Rules.from_json({}).on_hacking == "off"  # of a study that was made before
