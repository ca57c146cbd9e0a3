"""How long a rubric is tuned, and on which examples of train. Knows numbers and lists; pulls nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colever.errors import TaskError, UsageError

FEWEST = 8  # examples in each part of train


@dataclass(frozen=True)
class TuningPlan:
    """How long to try. Raises UsageError for what makes no sense."""

    schedule: str = "w"
    trials: int = 12  # rubrics, the own one among them
    designs: int = 4  # of them written by the proposer, where there is one
    share: float = 0.5  # of train, for the tuning split
    seeds: int = 3  # fresh training seeds for own and tuned; 0: test is not read

    def __post_init__(self) -> None:
        for name, fine, accepted in (
            ("trials", self.trials >= 2, "2 or more: the own rubric is the first"),
            ("designs", self.designs >= 0, "0 or more"),
            ("share", 0 < self.share < 1, "a number between 0 and 1"),
            ("seeds", self.seeds >= 0, "0 or more"),
        ):
            if not fine:
                raise UsageError(f"--{name} {getattr(self, name)}: accepted: {accepted}")


def cut(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(for the levers, for tuning): train in two parts, drawn by the seed, each in its own order. Raises TaskError."""
    size = round(share * len(rows))
    if min(size, len(rows) - size) < FEWEST:
        raise TaskError(
            f"train has {len(rows)} examples, of which {size} would be for tuning; accepted: at least {FEWEST} for "
            "each of the levers and tuning"
        )
    chosen = set(random.Random(seed).sample(range(len(rows)), size))
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
