"""How criteria come together: gates, clips, stages, and what is said of them to whom."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import dspy
import pytest

from colever.errors import TaskError
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Score

HINT, PREDICTORS = "mind it", ("", "solve", "check")


def reads(name: str):
    return lambda example, prediction, steps: prediction[name]


def rubric(**criteria: dict) -> Rubric:
    return Rubric([Criterion(name, reads(name), **fields) for name, fields in criteria.items()])


def score(of: Rubric, **values: float) -> Score:
    return of.score(dspy.Example(), dspy.Prediction(**values), ())


def drawn(rng: Random, plain: bool = False) -> Rubric:
    """A random rubric of up to six criteria; ``plain``: without gates, clips and stages."""
    made = []
    for i in range(rng.randint(1, 6)):
        low, high = sorted((rng.random(), rng.random()))
        further = {} if plain else {
            "gate": rng.choice([None, None, rng.uniform(0.01, 1)]), "clip": rng.choice([None, (low, high)]),
            "stage": rng.randint(0, 2), "form": rng.random() < 0.5,
        }  # fmt: skip
        made.append(
            Criterion(f"c{i}", reads(f"c{i}"), rng.choice([0, 0.1, 1, 3.7]), rng.choice(["", HINT]),
                      rng.choice(PREDICTORS), **further)
        )  # fmt: skip
    return Rubric([replace(made[0], weight=1.5), *made[1:]])


def values(rng: Random, of: Rubric) -> dict[str, float]:
    return {c.name: rng.choice([0.0, 1.0, 1.0, rng.random()]) for c in of.criteria}


def weighted_mean(of: Rubric, by: dict[str, float]) -> float:
    return sum(c.weight * by[c.name] for c in of.criteria) / sum(c.weight for c in of.criteria)


def plain_line(of: Rubric, by: dict[str, float], whose: tuple[str, ...] = PREDICTORS) -> str:
    short = [c for c in of.criteria if c.weight > 0 and by[c.name] < 1 and c.predictor in whose]
    return "; ".join(f"{c.name} {by[c.name]:.2f}" + (f" ({c.hint})" if c.hint else "") for c in short)


class TestAlways:
    """What holds for every rubric and every values."""

    @pytest.mark.parametrize("seed", range(200))
    def test_without_the_new_fields_totals_and_feedback_are_the_plain_ones(self, seed: int) -> None:
        rng = Random(seed)
        of = drawn(rng, plain=True)
        by = values(rng, of)
        made = score(of, **by)
        assert made == Score(weighted_mean(of, by), by, plain_line(of, by))
        for predictor in ("solve", "check"):
            own, whole = plain_line(of, by, (predictor,)), plain_line(of, by, ("",))
            other = plain_line(of, by, tuple({"solve", "check"} - {predictor}))
            said = [f"this step: {own}", *([f"the whole run: {whole}"] if whole else [])] if own else [
                "another step fell short; nothing is known against this one" if other
                else f"the whole run: {whole}" if whole else "nothing fell short"
            ]  # fmt: skip
            assert of.feedback(made, predictor) == ". ".join([f"score {made.total:.2f}", *said])

    @pytest.mark.parametrize("seed", range(200))
    def test_a_total_lies_between_0_and_1_and_obeys_gates_and_stages(self, seed: int) -> None:
        rng = Random(1000 + seed)
        of = drawn(rng)
        by = values(rng, of)
        made = score(of, **by)
        assert 0.0 <= made.total <= 1.0
        assert made.by_criterion == by
        if any(c.gate is not None and by[c.name] < c.gate for c in of.criteria):
            assert made.total == 0.0
            return
        full = {c.name: c.counted(by[c.name]) == 1 for c in of.criteria if c.weight}
        counts = [c for c in of.criteria if all(full[b.name] for b in of.criteria if b.weight and b.stage < c.stage)]
        expected = sum(c.weight * c.counted(by[c.name]) for c in counts) / sum(c.weight for c in of.criteria)
        assert made.total == pytest.approx(expected, abs=1e-12)
        assert (made.total == 1.0) == (not made.feedback) == all(full.values())

    @pytest.mark.parametrize("seed", range(100))
    def test_a_higher_value_never_makes_a_lower_total(self, seed: int) -> None:
        rng = Random(2000 + seed)
        of = drawn(rng)
        by = values(rng, of)
        for c in of.criteria:
            higher = {**by, c.name: rng.uniform(by[c.name], 1)}
            assert score(of, **higher).total >= score(of, **by).total - 1e-12

    @pytest.mark.parametrize("seed", range(200))
    def test_no_predictor_hears_of_another_predictors_criteria(self, seed: int) -> None:
        rng = Random(3000 + seed)
        of = drawn(rng)
        made = score(of, **values(rng, of))
        for predictor, other in (("solve", "check"), ("check", "solve")):
            said = of.feedback(made, predictor)
            assert not [c.name for c in of.criteria if c.predictor == other and c.name in said]
            assert said.startswith(f"score {made.total:.2f}. ")
        assert 0.0 <= of.compose(of.lowest("broken").by_criterion).total <= 1.0


class TestGate:
    of = rubric(answer={"weight": 2}, safe={"weight": 0, "gate": 0.5, "hint": "leak nothing"})

    @pytest.mark.parametrize(("safe", "total"), [(0.0, 0.0), (0.499, 0.0), (0.5, 1.0), (1.0, 1.0)])
    def test_a_watched_gate_decides_over_all_and_adds_nothing(self, safe: float, total: float) -> None:
        assert score(self.of, answer=1, safe=safe).total == total

    def test_what_it_says(self) -> None:
        made = score(self.of, answer=0.25, safe=0.2)
        assert made.by_criterion == {"answer": 0.25, "safe": 0.2}
        assert made.feedback == (
            "gate safe failed: the total is 0 unless it is at least 0.5, it is 0.2 (leak nothing); answer 0.25"
        )
        assert score(self.of, answer=1, safe=0.7).feedback == ""

    def test_it_is_told_to_whom_it_speaks_of_and_others_hear_only_why_the_total_is_0(self) -> None:
        of = rubric(
            answer={"weight": 2}, brief={"predictor": "check"},
            cited={"predictor": "solve", "gate": 1.0, "hint": "name a source"},
        )  # fmt: skip
        made = score(of, answer=1, brief=0.5, cited=0)
        assert of.feedback(made, "solve") == (
            "score 0.00. this step: gate cited failed: the total is 0 unless it is at least 1, it is 0 (name a source)"
        )
        assert of.feedback(made, "check") == (
            "score 0.00. this step: brief 0.50. the total is 0 because a gate of another step failed"
        )
        assert of.feedback(score(of, answer=1, brief=1, cited=0), "check") == (
            "score 0.00. another step fell short; nothing is known against this one. "
            "the total is 0 because a gate of another step failed"
        )

    def test_a_gate_of_the_whole_run_is_told_with_the_whole_run(self) -> None:
        of = rubric(answer={}, safe={"weight": 0, "gate": 1.0})
        assert of.feedback(score(of, answer=1, safe=0), "solve") == (
            "score 0.00. the whole run: gate safe failed: the total is 0 unless it is at least 1, it is 0"
        )


class TestClip:
    @pytest.mark.parametrize(("value", "total"), [(0, 0), (0.2, 0), (0.35, 0.25), (0.8, 1), (1, 1)])
    def test_cut_and_stretched(self, value: float, total: float) -> None:
        made = score(rubric(near={"clip": (0.2, 0.8)}), near=value)
        assert made.total == pytest.approx(total)
        assert made.by_criterion == {"near": value}

    def test_feedback_says_what_is_full(self) -> None:
        of = rubric(near={"clip": (0.2, 0.8), "hint": HINT})
        assert score(of, near=0.5).feedback == "near 0.50 of 0.8 (mind it)"
        assert score(of, near=0.85).feedback == ""

    def test_a_gate_reads_the_value_before_it_is_clipped(self) -> None:
        assert score(rubric(near={"clip": (0.0, 0.5), "gate": 0.6}), near=0.55).total == 0.0


class TestStage:
    of = rubric(
        parses={"hint": "write JSON"}, seen={"weight": 0}, answer={"stage": 1, "weight": 3, "hint": "it is wrong"},
        style={"stage": 2},
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("parses", "answer", "style", "total"),
        [(0.9, 1, 1, 0.18), (1, 0, 1, 0.2), (1, 0.5, 1, 0.5), (1, 1, 0.5, 0.9), (1, 1, 1, 1), (0, 1, 1, 0)],
    )
    def test_later_ones_count_when_earlier_ones_are_full(self, parses, answer, style, total) -> None:
        made = score(self.of, parses=parses, seen=0, answer=answer, style=style)
        assert made.total == pytest.approx(total)

    def test_a_clipped_criterion_is_full_where_its_clip_ends(self) -> None:
        of = rubric(near={"clip": (0.0, 0.5)}, answer={"stage": 1})
        assert score(of, near=0.5, answer=1).total == 1.0

    def test_only_the_open_stage_is_told_and_what_waits_for_it(self) -> None:
        made = score(self.of, parses=0.5, seen=0, answer=0, style=0)
        assert made.feedback == "parses 0.50 (write JSON); later criteria wait for parses: answer, style"
        assert score(self.of, parses=1, seen=0, answer=0, style=1).feedback == (
            "answer 0.00 (it is wrong); later criteria wait for answer: style"
        )

    def test_a_step_hears_what_of_its_own_waits(self) -> None:
        of = rubric(
            parses={"predictor": "solve"}, whole={}, answer={"stage": 1}, brief={"stage": 1, "predictor": "check"},
        )  # fmt: skip
        both, made = score(of, parses=0, whole=0.5, answer=1, brief=0), score(of, parses=0, whole=1, answer=1, brief=0)
        assert of.feedback(both, "solve") == (
            "score 0.12. this step: parses 0.00. the whole run: whole 0.50. later criteria wait for parses and whole: "
            "answer"
        )
        assert of.feedback(made, "check") == (
            "score 0.25. another step fell short; nothing is known against this one. "
            "later criteria wait for another step: answer, brief"
        )


class TestConstruction:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"gate": 0}, "gate of criterion 'x' is 0; accepted: a number above 0, at most 1, or none"),
            ({"gate": 1.5}, "gate of criterion 'x' is 1.5"),
            ({"gate": True}, "gate of criterion 'x' is True"),
            ({"gate": math.nan}, "gate of criterion 'x' is nan"),
            ({"clip": (0.5, 0.5)}, r"clip of criterion 'x' is \(0.5, 0.5\); accepted: low and high with 0 <= low"),
            ({"clip": (0, 2)}, "clip of criterion 'x'"),
            ({"clip": (0, math.nan)}, "clip of criterion 'x'"),
            ({"clip": 0.5}, "clip of criterion 'x' is 0.5"),
            ({"clip": ("0", "1")}, "clip of criterion 'x'"),
            ({"stage": -1}, "stage of criterion 'x' is -1; accepted: 0, 1, 2"),
            ({"stage": 1.0}, "stage of criterion 'x' is 1.0"),
            ({"stage": True}, "stage of criterion 'x' is True"),
            ({"form": 1}, "form of criterion 'x' is 1; accepted: true or false"),
            ({"weight": -1}, "weight of criterion 'x' is -1; accepted: 0 or a positive number"),
            ({"weight": math.nan}, "weight of criterion 'x' is nan"),
            ({"weight": math.inf}, "weight of criterion 'x' is inf"),
            ({"weight": "1"}, "weight of criterion 'x' is '1'"),
            ({"weight": 0, "gate": 0.5}, "at least one criterion needs a weight above 0"),
            ({"hint": None}, "hint of criterion 'x' is None; accepted: a text"),
            ({"predictor": 3}, "predictor of criterion 'x' is 3"),
            ({"check": "answer"}, "check of criterion 'x' is 'answer'; accepted: a function of"),
            ({"name": " "}, "name of criterion ' ' is ' '; accepted: a text that is not empty"),
        ],
    )
    def test_every_field_is_checked(self, fields: dict, message: str) -> None:
        with pytest.raises(TaskError, match=message):
            Rubric([Criterion(**{"name": "x", "check": bool, **fields})])

    def test_weights_whose_sum_is_not_finite(self) -> None:
        with pytest.raises(TaskError, match="the weights add up to inf"):
            Rubric([Criterion("a", bool, 1e308), Criterion("b", bool, 1e308)])

    def test_the_digest_sees_every_field(self) -> None:
        one = Criterion("x", bool)
        changes = [
            {}, {"weight": 2.0}, {"hint": "h"}, {"predictor": "p"}, {"gate": 0.5}, {"gate": 1.0}, {"clip": (0.0, 0.5)},
            {"clip": (0.0, 0.6)}, {"stage": 1}, {"form": True}, {"name": "y"}, {"check": float},
        ]  # fmt: skip
        assert len({Rubric([replace(one, **change)]).digest() for change in changes}) == len(changes)
        assert (
            Rubric([replace(one, weight=1, clip=(0, 0.5))]).digest() == Rubric([replace(one, clip=(0.0, 0.5))]).digest()
        )
