"""What each criterion brought of a gain in score: parts that add up to it, whatever gates, clips and stages do.

Example by example the score goes from what a rubric makes of the values before to what it makes of those after. The
values that changed are put in their place one after the other, and a criterion's part is what the score gains at its
turn, averaged over all orders: its Shapley value (Shapley, A value for n-person games, 1953). Where there is neither
gate nor stage that is its share of the weights × the change of what counts of it. A criterion that opens a gate gets
what the gate held back. Knows rubrics and evaluations; judges nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from colever.tasks.rubric import Criterion, Rubric
from colever.types import Evaluation

MOST = 8  # values that changed in one example: of more, only the rubric's order and its reverse are averaged
Values = Mapping[str, float]
Parts = Mapping[str, Mapping[str, Any]]  # criterion → weight, gate, clip and stage, as JSON


def parts_of(rubric: Rubric) -> dict[str, dict[str, Any]]:
    """What decides how the criteria come together: all that is read here of a rubric, so that a study can keep it."""
    return {
        c.name: {"weight": c.weight, "gate": c.gate, "clip": None if c.clip is None else list(c.clip), "stage": c.stage}
        for c in rubric.criteria
    }


def carried(parts: Parts, base: Evaluation, child: Evaluation, examples: Sequence[str]) -> dict[str, float] | None:
    """By criterion, in the rubric's order: its part of the mean gain of these examples from ``base`` to ``child``.

    None where their values are not known: evaluations that were stored before values were kept have means alone.
    """
    before, after = _rows(parts, base), _rows(parts, child)
    if not all(before.get(name) and after.get(name) for name in examples):
        return None
    rubric = Rubric([Criterion(name, _unasked, **part) for name, part in parts.items()])
    pairs = Counter((before[name], after[name]) for name in examples)  # most examples change alike
    total = dict.fromkeys(parts, 0.0)
    for (old, new), count in pairs.items():
        for name, part in split(rubric, dict(zip(parts, old, strict=True)), dict(zip(parts, new, strict=True))):
            total[name] += part * count
    return {name: value / len(examples) for name, value in total.items()}


def split(rubric: Rubric, before: Values, after: Values) -> list[tuple[str, float]]:
    """What the total of ``after`` is above that of ``before``, over the criteria whose value changed."""
    moved = [name for name in before if before[name] != after[name]]
    if all(c.gate is None and c.stage == rubric.criteria[0].stage for c in rubric.criteria):
        share = {c.name: c.weight / sum(c.weight for c in rubric.criteria) for c in rubric.criteria}
        counted = {c.name: c.counted for c in rubric.criteria}
        return [(name, share[name] * (counted[name](after[name]) - counted[name](before[name]))) for name in moved]

    def at(names: Sequence[str]) -> float:
        return rubric.total({**before, **{name: after[name] for name in names}})

    if len(moved) > MOST:
        return [(name, (_turn(at, moved, name) + _turn(at, moved[::-1], name)) / 2) for name in moved]
    worth = {frozenset(some): at(some) for size in range(len(moved) + 1) for some in combinations(moved, size)}
    chance = [1 / (len(moved) * math.comb(len(moved) - 1, size)) for size in range(len(moved))]  # of being so many-th
    return [
        (name, sum(chance[len(some)] * (worth[some | {name}] - v) for some, v in worth.items() if name not in some))
        for name in moved
    ]


def _turn(at: Callable[[Sequence[str]], float], order: Sequence[str], name: str) -> float:
    place = order.index(name)
    return at(order[: place + 1]) - at(order[:place])


def _rows(parts: Parts, evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """The examples' values in the criteria's order; of those that have them all."""
    columns = [evaluation.values.get(name, ()) for name in parts]
    if not columns or not all(columns):
        return {}
    rows = zip(evaluation.example_ids, zip(*columns, strict=True), strict=True)
    return {name: tuple(v for v in row if v is not None) for name, row in rows if None not in row}


def _unasked(*_: Any) -> float:
    raise AssertionError("values are known here: no criterion is asked")
