"""What a score says in words, to a person or to a model that rewrites prompts. Knows criteria; scores nothing.

Gates and stages decide over the total, so they are said before single values, and by whom they are told follows the
rule for all of a rubric's words: no predictor hears another's failure as its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colever.tasks.rubric import Criterion

Values = Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """How one rollout stands with a rubric: gates that failed, what fell short, what waits for that."""

    closed: tuple[Criterion, ...]
    short: tuple[Criterion, ...]  # of the earliest stage that is not full
    waiting: tuple[Criterion, ...]  # of later stages, whatever their values

    def missed(self) -> list[Criterion]:
        """What fell short, failed gates first."""
        return [*self.closed, *(c for c in self.short if not _holds(self.closed, c))]


def of_whole(standing: Standing, values: Values) -> str:
    """All of it in one line; empty where nothing fell short."""
    said = [_said(standing, c, values) for c in standing.missed()]
    if standing.waiting:
        said.append(_wait(standing.waiting, [c.name for c in standing.short]))
    return "; ".join(said)


def of_step(standing: Standing, values: Values, predictor: str) -> list[str]:
    """What concerns one predictor's step, sentence by sentence."""
    missed = standing.missed()
    own, whole = ([c for c in missed if c.predictor == name] for name in (predictor, ""))
    run = ["the whole run: " + "; ".join(_said(standing, c, values) for c in whole)] if whole else []
    if own:
        said, told = ["this step: " + "; ".join(_said(standing, c, values) for c in own), *run], [*own, *whole]
    elif any(c.predictor for c in missed):
        said, told = ["another step fell short; nothing is known against this one"], []
    else:
        said, told = run or ["nothing fell short"], whole
    return [*said, *_elsewhere(standing, told), *_waits(standing, told, predictor)]


def _elsewhere(standing: Standing, told: Sequence[Criterion]) -> list[str]:
    """Why the total is 0, where no gate that failed has been told."""
    if not standing.closed or any(_holds(told, c) for c in standing.closed):
        return []
    whose = "of the whole run" if any(not c.predictor for c in standing.closed) else "of another step"
    return [f"the total is 0 because a gate {whose} failed"]


def _waits(standing: Standing, told: Sequence[Criterion], predictor: str) -> list[str]:
    """What of this step or the whole run waits, and for what; another step's criteria are not named."""
    waiting = [c for c in standing.waiting if c.predictor in ("", predictor)]
    if not waiting:
        return []
    untold = [c for c in standing.short if not _holds(told, c)]
    hidden = ["another step"] if any(c.predictor for c in untold) else ["the whole run"] if untold else []
    return [_wait(waiting, [*(c.name for c in standing.short if _holds(told, c)), *hidden])]


def _holds(criteria: Sequence[Criterion], criterion: Criterion) -> bool:
    """By name, which is unique; what a check is equal to is its own affair."""
    return any(c.name == criterion.name for c in criteria)


def _wait(waiting: Sequence[Criterion], blockers: Sequence[str]) -> str:
    return f"later criteria wait for {_listed(blockers)}: {', '.join(c.name for c in waiting)}"


def _said(standing: Standing, criterion: Criterion, values: Values) -> str:
    value = values[criterion.name]
    told = [text for text in (criterion.hint, getattr(value, "reason", "")) if text]  # a judge gives a reason
    hint = f" ({'; '.join(told)})" if told else ""
    if _holds(standing.closed, criterion):
        needed = f"the total is 0 unless it is at least {criterion.gate:g}, it is {value:.4g}"
        return f"gate {criterion.name} failed: {needed}{hint}"
    full = f" of {criterion.clip[1]:g}" if criterion.clip and criterion.clip[1] < 1 else ""
    return f"{criterion.name} {value:.2f}{full}{hint}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
