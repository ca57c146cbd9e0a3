"""Ways to spend a budget on one task, each as the points that it reaches: so much spent, this candidate in hand.

Knows stored records; runs nothing. A path's points are cumulative on its own ledger: base on dev first, then every
round as it ended, one that the same path has had already for nothing. What a path has to show at a cap is the best on
dev of the points within it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from colever.config import ADAPTIVE
from colever.types import Candidate, Cost, Evaluation, TrialRecord

ORDERS = ("p", "w", "p,w", "w,p", "p,w,p", "w,p,w")
SIX, SEARCHED = "the six, by dev", "searched"
BASE = "base"


@dataclass(frozen=True)
class Point:
    """What was spent by then, and the candidate that stood there with its dev score."""

    cost: Cost
    candidate: Candidate
    dev: float


Path = Sequence[Point]
Paths = Mapping[str, Path]  # by method


class Ran(Protocol):
    """A run of BetterTogether as far as a path needs it."""

    @property
    def candidate(self) -> Candidate: ...

    @property
    def dev(self) -> float: ...

    @property
    def cost(self) -> Cost: ...


def paths(
    base: Candidate, base_dev: Evaluation, trials: Sequence[TrialRecord], together: Mapping[str, Ran]
) -> dict[str, Path]:
    """Every method by name. The six orders come first in a study, then the adaptive schedule, then what is searched."""
    start = Point(base_dev.cost, base, base_dev.score)
    found: dict[str, Path] = {BASE: [Point(Cost(), base, base_dev.score)]}
    for order in (*ORDERS, ADAPTIVE):
        mine = [t for t in trials if t.schedule == order][:1]  # the arm: a searched trial may have its order too
        if mine:
            found[order] = along(start, mine)
    if all(order in found for order in ORDERS):
        found[SIX] = along(start, [next(t for t in trials if t.schedule == order) for order in ORDERS])
    found[SEARCHED] = along(start, trials)
    for kind, run in together.items():
        found[kind] = [Point(run.cost, run.candidate, run.dev)]
    return found


def along(start: Point, trials: Sequence[TrialRecord]) -> Path:
    """These trials one after the other on one ledger: each distinct round is paid once."""
    points, seen = [start], set[str]()
    for trial in trials:
        for record in trial.rounds:
            spent = points[-1].cost if record.key in seen else points[-1].cost + record.cost
            seen.add(record.key)
            points.append(Point(spent, record.kept, record.dev.score))
    return points


def at(path: Path, flops: float = math.inf) -> Point | None:
    """The best on dev within the cap, the first of equals; None where the cap does not reach the first point.

    Its cost is what was spent within the cap, also on what came after it.
    """
    within = [point for point in path if point.cost.flops <= flops]
    if not within:
        return None
    best = max(within, key=lambda point: point.dev)
    return Point(within[-1].cost, best.candidate, best.dev)
