"""Several studies side by side: one row for each task, rubric and model. Records only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from colever.reported import Estimate
from colever.types import Cost

OWN = "own"  # the task's rubric, not a file's


@dataclass(frozen=True)
class Reached:
    """The cheapest way to the target on dev, over training seeds."""

    seeds: int  # in how many of them any trial reached it
    lever: str  # the arm that reached it at the least cost, in most of those seeds; "" if none
    cost: Cost | None  # the mean over those seeds of the cost up to that round's end


@dataclass(frozen=True)
class ComparisonRow:
    """The studies of one task, rubric, model and settings, one per seed; gold where the task has gold, else score."""

    task: str
    model: str
    studies: tuple[str, ...]
    seeds: tuple[int, ...]
    examples: int
    gold: bool
    target: float
    table: Mapping[str, Estimate | None]  # base, prompt, weights, both on test; None: not pulled in every seed
    effects: Mapping[str, Estimate]  # prompt, weights, interaction; ahead: weights only less prompt only
    needed: Mapping[str, str] = field(default_factory=dict)  # of an unresolved effect: what would resolve it
    schedules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of prompt, weights, both; one per seed
    reached: Reached | None = None
    cost: Cost = field(default_factory=Cost)  # of the sweeps, all seeds
    rubric: str = OWN  # the file's name, or own, with the beginning of its digest: strict.toml 3f09ab

    @property
    def won(self) -> str:
        """The lever that is ahead alone; "" where the interval of the difference holds 0, or one was not pulled."""
        ahead = self.effects.get("ahead")
        if ahead is None or not ahead.resolved:
            return ""
        return "weights" if ahead.value > 0 else "prompt"
