"""What tuning a rubric found, as it is stored, shown and tracked: frozen, JSON. Nothing computes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from colever.reported import Estimate
from colever.types import Cost

How = Literal["own", "design", "search"]


@dataclass(frozen=True)
class TriedRubric:
    """One rubric and what the levers made under it, read by gold on the tuning split; None: nothing came of it."""

    number: int
    how: How
    changes: tuple[str, ...]  # of the rubric that tuning began with
    tables: tuple[Mapping[str, Any], ...]
    digest: str = ""
    gold: float | None = None
    kept: int = 0  # rounds whose child was kept
    policy_failures: int = 0
    error: str = ""


@dataclass(frozen=True)
class Tuning:
    """The rubrics tried, the best of them, and what it bought on test over fresh training seeds."""

    name: str
    task: str
    model: str
    schedule: str
    train: int  # examples that the levers saw
    tuning: int  # examples cut from train, whose gold chose
    base: float  # gold of the base on these
    tried: tuple[TriedRubric, ...]
    best: int = 0  # its number; 0: the own rubric
    gain: Estimate | None = None  # on the tuning split, best less own: what chose is in it
    seeds: int = 0  # fresh training seeds, each for both rubrics
    test: Mapping[str, Estimate] = field(default_factory=dict)  # gold: base, own, tuned
    bought: Estimate | None = None  # on test, tuned less own
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> TriedRubric:
        return self.tried[0]

    @property
    def tuned(self) -> TriedRubric:
        return self.tried[self.best]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
