"""Where demos come from: examples that already hold a predictor's fields, and the program's own best rollouts.

Knows programs and examples; knows nothing of which demos are worth showing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from colever.optimizers.rehearsed import Rehearsed
from colever.pipelines.plain import plain

Demo = Mapping[str, Any]
Demos = dict[str, list[Demo]]  # predictor → demos, no two alike


def labelled_demos(program: dspy.Module, examples: Sequence[dspy.Example]) -> Demos:
    """Per predictor, one demo per example that has a value for each of its input and output fields."""
    pool: Demos = {}
    for name, predictor in program.named_predictors():
        fields = list(predictor.signature.fields)
        whole = [row for row in examples if all(field in row for field in fields)]
        rows = [{field: plain(row[field]) for field in fields} for row in whole]
        pool[name] = _distinct(rows)
    return pool


def bootstrapped_demos(rollouts: Sequence[Rehearsed], threshold: float) -> Demos:
    """Per predictor, its calls in the rollouts at or above ``threshold``: best rollouts first, then by content."""
    good = [(r.total, [(name, i, o) for name, i, o, failed, _ in r.calls if not failed]) for r in rollouts]
    kept = [(total, json.dumps(calls, sort_keys=True), calls) for total, calls in good if total >= threshold]
    pool: Demos = {}
    for _, _, calls in sorted(kept, key=lambda one: (-one[0], one[1])):
        for name, inputs, outputs in calls:
            if name:
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
