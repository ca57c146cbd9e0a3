"""What a lever is: a candidate in, a better one (it hopes) out. Knows no task family, no store and no study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from colever.types import Candidate, LeverName

if TYPE_CHECKING:
    from colever.config import Settings
    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.budget import Budget
    from colever.tasks.task import Task


class Progress(Protocol):
    """Told how far a piece of work has come; draws it or does not."""

    def update(self, done: int, total: int, text: str) -> None: ...


class NullProgress:
    """Draws nothing."""

    def update(self, done: int, total: int, text: str) -> None:
        return None


@dataclass(frozen=True)
class Checked:
    """Progress that is made no longer where ``check`` raises: the work may be another process's by now."""

    inner: Progress
    check: Callable[[], None]

    def update(self, done: int, total: int, text: str) -> None:
        self.check()
        self.inner.update(done, total, text)


@dataclass(frozen=True)
class Staged:
    """Progress that says where in a longer piece of work it is."""

    inner: Progress
    where: str

    def update(self, done: int, total: int, text: str) -> None:
        self.inner.update(done, total, f"{self.where} · {text}")


@dataclass(frozen=True)
class Pull:
    """What a lever made: the child (which may equal the parent), its curves ``name → [(step, value)]``, and notes."""

    candidate: Candidate
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Lever(Protocol):
    """One way of pulling one lever; ``settings`` are everything that its result depends on beyond the arguments.

    ``improve`` reads the train split and the rubric only. It reserves each batch on ``budget`` before it runs it and
    charges what it cost. New weights are written below ``workdir``, which survives a kill: what is found there on
    entry is the same pull's own earlier work. Raises LeverError if it fails, BudgetExhausted at a cap.
    """

    name: LeverName

    @property
    def settings(self) -> Settings: ...

    def planned(self, candidate: Candidate, task: Task) -> int:
        """About how many rollouts on train a pull takes; at most so many, unless a failure is repeated."""
        ...

    def improve(
        self,
        candidate: Candidate,
        task: Task,
        engine: TransformersEngine,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress,
    ) -> Pull: ...
