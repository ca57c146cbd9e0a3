"""What a study offers for its cost: its front of score against cost, the cheapest ways. Records only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colever.types import Cost, Estimate


@dataclass(frozen=True)
class Stop:
    """The candidate that a trial kept after some of its rounds, at what these cost, each charged in full."""

    trial: int
    schedule: str  # of the rounds so far; "" is the base
    cost: Cost
    dev_score: float
    dev: float  # gold where the task has gold, else the score
    test: float | None = None  # likewise; None where it was not read


@dataclass(frozen=True)
class Level:
    """The cheapest stops at which dev first reaches a level: by prompt rounds only, weight rounds only, both."""

    at: float
    cheapest: Mapping[str, Stop]  # of base, prompt, weights, both; those that never reach it are left out


@dataclass(frozen=True)
class Elsewhere:
    """Another task's dev scores under this study's weights and the other task's own prompts, in shares.

    Gold where that task has gold. ``change`` is paired over its examples: the weights less the model's own.
    """

    task: str
    arm: str  # whose weights: weights, both
    before: float
    after: float
    change: Estimate
    examples: int
