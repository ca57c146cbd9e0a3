"""What each criterion brought of a gain: parts that add up, whatever gates, clips and stages do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_alternate import Bench
from toy import right, toy_task

from colever.config import GuardSettings
from colever.looks import Guarded, JudgedRound
from colever.optimizers.carried import MOST, carried, parts_of, split
from colever.optimizers.guard import Rules, look
from colever.tasks.rubric import Criterion, Rubric
from colever.tracking.hacking import alarm_text
from colever.types import Evaluation


def rubric_of(*criteria: dict[str, Any]) -> Rubric:
    return Rubric([Criterion(f"c{i}", right, **given) for i, given in enumerate(criteria)])


def evaluation(rubric: Rubric, values: np.ndarray, golds: Any = None) -> Evaluation:
    """Of an array of (examples, criteria)."""
    names = [c.name for c in rubric.criteria]
    columns = {name: tuple(map(float, column)) for name, column in zip(names, values.T, strict=True)}
    scores = tuple(rubric.total(dict(zip(names, map(float, row), strict=True))) for row in values)
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    ids = tuple(f"dev-{i}" for i in range(len(values)))
    golds = tuple(map(float, golds)) if golds is not None else (0.0,) * len(values)
    return Evaluation("dev", ids, scores, golds, means, {}, values=columns)


COMPOSED = {
    "a plain mean": ({"weight": 2}, {"weight": 1}, {"weight": 0}),
    "a gate": ({"weight": 0, "gate": 0.5}, {"weight": 3}, {"weight": 1}),
    "clips": ({"clip": (0.2, 0.6)}, {"weight": 2, "clip": (0.5, 1.0)}, {"weight": 1}),
    "stages": ({"weight": 1}, {"weight": 2, "stage": 1}, {"weight": 3, "stage": 2}),
    "all of them": (
        {"gate": 0.3}, {"weight": 2, "clip": (0, 0.5)}, {"weight": 2, "stage": 1, "gate": 0.1}, {"stage": 2},
    ),
    "many": ({"weight": 1}, {"weight": 0, "gate": 0.1}) + ({"weight": 1, "stage": 1},) * MOST,
}  # fmt: skip


@pytest.mark.parametrize("composed", COMPOSED.values(), ids=COMPOSED)
def test_the_parts_add_up_to_the_gain(composed: tuple[dict[str, Any], ...]) -> None:
    rubric, rng = rubric_of(*composed), np.random.default_rng(3)
    base, child = (evaluation(rubric, rng.choice([0, 0.25, 0.5, 1, 1, 1], (40, len(composed)))) for _ in range(2))
    found = carried(parts_of(rubric), base, child, base.example_ids)
    assert found is not None
    assert sum(found.values()) == pytest.approx(child.score - base.score, abs=1e-12)
    kept = Evaluation.from_json(json.loads(json.dumps(child.to_json())))
    assert kept == child
    assert carried(json.loads(json.dumps(parts_of(rubric))), base, kept, base.example_ids) == found


def test_without_gate_and_stage_it_is_weight_times_change_of_what_counts() -> None:
    rubric = rubric_of({"weight": 3, "clip": (0.5, 1.0)}, {"weight": 1})
    found = dict(split(rubric, {"c0": 0.2, "c1": 0.5}, {"c0": 0.75, "c1": 0.25}))
    assert found == {"c0": pytest.approx(0.75 * 0.5), "c1": pytest.approx(0.25 * -0.25)}


def test_who_opens_a_gate_gets_what_it_held_back() -> None:
    rubric = rubric_of({"weight": 0, "gate": 1.0}, {"weight": 1})
    assert dict(split(rubric, {"c0": 0.0, "c1": 0.8}, {"c0": 1.0, "c1": 0.8})) == {"c0": 0.8}
    both = dict(split(rubric, {"c0": 0.0, "c1": 0.0}, {"c0": 1.0, "c1": 1.0}))
    assert both == {"c0": 0.5, "c1": 0.5}  # neither is anything without the other


def test_a_stage_that_became_full_gets_half_of_what_waited_for_it_and_came() -> None:
    rubric = rubric_of({"weight": 1}, {"weight": 1, "stage": 1})
    found = dict(split(rubric, {"c0": 0.5, "c1": 0.0}, {"c0": 1.0, "c1": 1.0}))
    assert found == {"c0": pytest.approx(0.5), "c1": pytest.approx(0.25)}


def looked(rubric: Rubric, base: Evaluation, child: Evaluation) -> Any:
    found = look(1, base, child, Rules.of(GuardSettings(), rubric))
    assert found is not None
    return found


def test_an_alarm_names_the_gate_that_carried_the_gain() -> None:
    """The gate's own weight is 0: by weight × change of the mean nothing would have come from it."""
    rubric, n = rubric_of({"weight": 0, "gate": 1.0}, {"weight": 1}), 64
    shut, opened = np.array([[0.0, 1.0]] * n), np.array([[1.0, 1.0]] * n)
    found = looked(rubric, evaluation(rubric, shut), evaluation(rubric, opened))
    assert found.alarm
    assert found.criteria == {"c0": pytest.approx(1.0)}
    assert sum(found.criteria.values()) == pytest.approx(found.score_gain)
    said = alarm_text(JudgedRound("0.1", "weights", 1.0, 0.0, found), Guarded("warn", 0.05))
    assert "The score came from c0 +100.0." in said


def test_examples_that_are_not_in_both_are_left_out_of_the_parts_too() -> None:
    rubric = rubric_of({"weight": 1}, {"weight": 1})
    base, child = (evaluation(rubric, np.array([[a, 0.5]] * 8)) for a in (0.0, 1.0))
    holes = (None, *child.scores[1:])
    holed = replace(child, scores=holes, values={n: (None, *v[1:]) for n, v in child.values.items()})
    found = looked(rubric, base, holed)
    assert found.examples == 7
    assert found.criteria == {"c0": pytest.approx(found.score_gain)}


def test_what_was_stored_before_values_were_kept_is_told_as_what_it_is() -> None:
    rubric = rubric_of({"weight": 1}, {"weight": 1})
    base, child = (evaluation(rubric, np.array([[a, 0.5]] * 64)) for a in (0.0, 1.0))
    found = looked(rubric, replace(base, values={}), child)
    assert not found.exact
    assert found.criteria == {"c0": pytest.approx(0.5)}
    said = alarm_text(JudgedRound("0.1", "weights", 1.0, 0.0, found), Guarded("warn", 0.05))
    assert "By weight × change of the mean, the score came from c0 +50.0." in said
    data = {name: value for name, value in base.to_json().items() if name != "values"}
    assert Evaluation.from_json(data) == replace(base, values={})


def test_an_alarm_with_many_criteria_still_adds_up() -> None:
    rubric = rubric_of(*[{"weight": 6 - i} for i in range(6)])
    rises = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    base, child = (evaluation(rubric, np.array([row] * 64)) for row in ([0.0] * 5 + [1.0], rises))
    found = looked(rubric, base, child)
    said = alarm_text(JudgedRound("0.1", "weights", 1.0, 0.0, found), Guarded("warn", 0.05))
    assert "c0 +28.6, c1 +23.8, c2 +19.0, c3 +14.3, 2 other criteria +4.8." in said


def test_a_real_rounds_parts_add_up(tmp_path: Path) -> None:
    """The toy's answers, its number a gate: values are kept with what the evaluator stores."""
    number = Criterion("number", lambda e, p, s: p.answer.strip().isdigit(), 0, gate=1.0)
    task = toy_task(rubric=Rubric([Criterion("right", right, 3), number]))
    bench = Bench(tmp_path, rubric=task.rubric)
    (record,) = bench.run("weights")
    found = carried(parts_of(task.rubric), record.before, record.after, record.before.example_ids)
    assert found is not None
    assert sum(found.values()) == pytest.approx(record.after.score - record.before.score)
    assert found["number"] > 0
