"""What a way of pulling the prompt lever is given and what it gives back. Knows no optimizer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import dspy

from colever.config import PromptSettings
from colever.types import Candidate, PredictorPrompt

if TYPE_CHECKING:
    from colever.optimizers.rehearsal import Rehearsal
    from colever.tasks.task import Task

Prompts = Mapping[str, PredictorPrompt]
Rows = Sequence[tuple[str, dspy.Example]]


@dataclass(frozen=True)
class TrainRows:
    """The train examples of a pull: demos and reflections come from ``shown``, candidates compete on ``scored``."""

    shown: Rows
    scored: Rows


@dataclass(frozen=True)
class Calls:
    """What a pull asks for, at most: rollouts of the policy, calls of the proposer."""

    rollouts: int
    proposer_calls: int = 0


@dataclass(frozen=True)
class Pulling:
    """One pull, as a way sees it. Every draw comes from ``rng`` or ``seed``."""

    parent: Candidate
    task: Task
    settings: PromptSettings
    rows: TrainRows
    rehearsal: Rehearsal
    proposer: dspy.LM | None
    rng: random.Random
    seed: int

    @property
    def scored(self) -> list[str]:
        """The ids on which candidates compete."""
        return [example_id for example_id, _ in self.rows.scored]

    def examples(self, which: str) -> list[dspy.Example]:
        """``shown`` or ``scored`` as DSPy wants them."""
        return [example for _, example in getattr(self.rows, which)]


@dataclass(frozen=True)
class Found:
    """What a way chose, in words too, and what it tried: rows with ``what``, ``screen`` and ``final`` (or None)."""

    prompts: Prompts
    words: str
    tried: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


class Way(Protocol):
    """One optimizer behind the prompt lever. ``needs_proposer``: it has prompts written, and needs who writes them."""

    needs_proposer: bool

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        """Before anything is spent: raises UsageError for settings, a task or rows that it can't work with."""
        ...

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """At most so many, unless a failure is repeated."""
        ...

    def search(self, pulling: Pulling) -> Found:
        """Its choice. What DSPy's loops swallow the prompt lever raises afterwards."""
        ...
