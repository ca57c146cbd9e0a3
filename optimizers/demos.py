"""Where demos come from: examples that already hold a predictor's fields, and the program's own best rollouts.

Knows programs and examples; knows nothing of which demos are worth showing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from colever.types import Score, Step

Demo = Mapping[str, Any]
Demos = dict[str, list[Demo]]  # predictor → demos, no two alike
_CALLS = "_colever_calls"  # a private attribute: no field of the prediction


def labelled_demos(program: dspy.Module, examples: Sequence[dspy.Example]) -> Demos:
    """Per predictor, one demo per example that has a value for each of its input and output fields."""
    pool: Demos = {}
    for name, predictor in program.named_predictors():
        fields = list(predictor.signature.fields)
        rows = [{field: row[field] for field in fields} for row in examples if all(field in row for field in fields)]
        pool[name] = _distinct(rows)
    return pool


def recorded(program: dspy.Module) -> dspy.Module:
    """The program, made to keep each predictor call's inputs and outputs on its prediction (see ``Harvest``)."""
    original = type(program)

    def forward(self: dspy.Module, *args: Any, **kwargs: Any) -> dspy.Prediction:
        with dspy.context(trace=[]):
            prediction = original.forward(self, *args, **kwargs)
            names = {id(predictor): name for name, predictor in self.named_predictors()}
            calls = [
                (names[id(p)], dict(inputs), dict(out.items()))
                for p, inputs, out in dspy.settings.trace
                if id(p) in names
            ]
        object.__setattr__(prediction, _CALLS, calls)
        return prediction

    program.__class__ = type(original)(  # type: ignore[misc]
        original.__name__, (original,), {"forward": forward, "__module__": original.__module__}
    )
    return program


class Harvest:
    """A scoring function that also gathers, from rollouts at or above ``threshold``, each call as a demo."""

    def __init__(self, score: Any, threshold: float) -> None:
        self._score, self._threshold = score, threshold
        self._kept: list[tuple[float, str, list[tuple[str, dict[str, Any], dict[str, Any]]]]] = []

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Score:
        score = self._score(example, prediction, steps)
        calls = getattr(prediction, _CALLS, None)
        if calls and score.total >= self._threshold:
            self._kept.append((score.total, json.dumps(calls, sort_keys=True, default=str), calls))
        return score

    def demos(self) -> Demos:
        """Best rollouts first, then by content, so that the order in which they ended does not count."""
        pool: Demos = {}
        for _, _, calls in sorted(self._kept, key=lambda kept: (-kept[0], kept[1])):
            for name, inputs, outputs in calls:
                pool.setdefault(name, []).append({**inputs, **outputs})
        return {name: _distinct(rows) for name, rows in pool.items()}


def draw(pool: Sequence[Demo], outputs: Sequence[str], size: int, rng: random.Random) -> tuple[Demo, ...]:
    """``size`` demos in random order, as many different outputs among them as there are."""
    rows = list(pool)
    rng.shuffle(rows)
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, Demo]] = []
    for row in rows:
        answer = json.dumps([row.get(field) for field in outputs], sort_keys=True, default=str)
        seen[answer] = seen.get(answer, -1) + 1
        ranked.append((seen[answer], len(ranked), row))
    chosen = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:size]]
    rng.shuffle(chosen)
    return tuple(chosen)


def _distinct(rows: Sequence[Demo]) -> list[Demo]:
    """Without repetitions, and without those that JSON cannot hold."""
    kept: dict[str, Demo] = {}
    for row in rows:
        try:
            kept.setdefault(json.dumps(row, sort_keys=True), row)
        except TypeError:
            continue
    return list(kept.values())
