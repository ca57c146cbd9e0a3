"""Whether a study's judges stay what they were: fixed answers of known worth, judged as it starts and as it ends.

Knows judges and their anchors; scores no rollout. A judge that does not agree with its anchors at the start stops the
study before anything else is spent; what changes until its end is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from colever.engines.tally import tallied
from colever.errors import TaskError
from colever.tasks.judges import judges_of
from colever.types import Cost

if TYPE_CHECKING:
    from colever.optimizers.budget import Budget
    from colever.tasks.criteria.panel import Panel
    from colever.tasks.task import Task


@dataclass
class Anchors:
    """Those of one study; ``study`` tells its occasions from those of others."""

    task: Task
    study: str
    before: Mapping[str, list[float]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def begin(self, budget: Budget) -> None:
        """Ask for the first time. Raises TaskError for a judge that is farther from its anchors than its tolerance."""
        self.before = self._asked("start", budget)
        for name, judge in self._judges().items():
            wanted, found = _wanted(judge), self.before[name]
            if _apart(wanted, found) > judge.tolerance:
                raise TaskError(f"criterion {name!r}: {_disagreement(judge, wanted, found)}")

    def end(self, occasion: str) -> list[str]:
        """Ask again; what changed, a line for each judge."""
        after, notes = self._asked(f"end {occasion}", None), []
        for name, judge in self._judges().items():
            wanted, first, last = _wanted(judge), self.before[name], after[name]
            moved = _apart(first, last)
            line = (
                f"Judge {name!r}: {_apart(wanted, first):.2f} from its {len(wanted)} anchors at the start, "
                f"{_apart(wanted, last):.2f} at the end; its verdicts on them moved by {moved:.2f} in the mean"
            )
            beyond = moved > judge.tolerance or _apart(wanted, last) > judge.tolerance
            told = f", beyond its tolerance of {judge.tolerance:g}: scores of this study may not be comparable."
            notes.append(line + (told if beyond else "."))
        return notes

    def _judges(self) -> dict[str, Panel]:
        return {name: judge for name, judge in judges_of(self.task).items() if judge.anchors}

    def _asked(self, when: str, budget: Budget | None) -> dict[str, list[float]]:
        """Each judge's values of its anchors, in order."""
        found = {}
        with tallied((lambda calls: budget.reserve(judge_calls=calls)) if budget else (lambda calls: None)) as tally:
            try:
                for name, judge in self._judges().items():
                    occasion = f"{self.study}, {when}"
                    found[name] = [float(judge.grade(a.inputs, a.outputs, a.labels, occasion)) for a in judge.anchors]
            finally:
                self.cost = self.cost + tally.cost
                if budget is not None:
                    budget.charge(tally.cost)
        return found


def _wanted(judge: Panel) -> list[float]:
    return [judge.options[anchor.choice] for anchor in judge.anchors]


def _apart(one: list[float], other: list[float]) -> float:
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def _disagreement(judge: Panel, wanted: list[float], found: list[float]) -> str:
    worst = max(range(len(found)), key=lambda place: abs(found[place] - wanted[place]))
    return (
        f"the judge is {_apart(wanted, found):.2f} from its {len(found)} anchors in the mean (accepted: "
        f"{judge.tolerance:g}); of anchor {worst + 1}, {judge.anchors[worst].choice!r}, it says {found[worst]:.2f} in "
        f"the place of {wanted[worst]:.2f}: mend the question, the anchors or the tolerance"
    )
