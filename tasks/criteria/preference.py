"""Criteria that ask a language model to compare an answer with others: with one reference, or with several ranked ones.

A rubric sees one rollout at a time, so an answer is never compared with the other rollouts of its group, but with
answers that the example has: a label, what a stronger model wrote, what the program wrote before it was tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from colever.errors import TaskError
from colever.tasks.criteria.material import Section, shown
from colever.tasks.criteria.panel import Panel, Vote
from colever.tasks.judged import Judged

FIRST, SECOND, TIE = "A", "B", "tie"
BETTER = "Which of the two answers, A or B, is the better one?"


@dataclass(frozen=True, kw_only=True)
class Compared(Panel):
    """What is compared: the output ``field`` with answers that stand in the example."""

    field: str
    question: str = BETTER

    def duel(
        self, seat: tuple[str, int], context: Sequence[Section], answer: str, other: str, occasion: str
    ) -> tuple[float, str]:
        """1 where the answer is called better in both orders, 0 where the other is, 0.5 for all else; and why.

        Asked twice, the answer first and then second: a model that prefers a place says tie.
        """
        won, reasons = [], []
        for first, second, name in ((answer, other, FIRST), (other, answer, SECOND)):
            material = [*context, ("answer A", first), ("answer B", second)]
            option, reason = self.put(*seat, material, self.question, (FIRST, SECOND, TIE), occasion)
            won.append(0.5 if option == TIE else float(option == name))
            reasons.append(f"(as {name}) {reason}" if reason else "")
        value = fmean(won)
        return (value if value in (0.0, 1.0) else 0.5), " ".join(filter(None, reasons))

    def context(self, inputs: Mapping[str, Any], labels: Mapping[str, Any], *hidden: str) -> list[Section]:
        """The inputs and labels that are shown beside the answers; references are not."""
        rest = {name: value for name, value in labels.items() if name not in hidden}
        return self.shown(inputs, {}, rest)

    def answer(self, outputs: Mapping[str, Any]) -> str:
        """Raises TaskError where there is no such output."""
        if self.field not in outputs:
            raise TaskError(
                f"{self._kind}: there is no output {self.field!r}; accepted: {', '.join(outputs) or 'none'}"
            )
        return shown(outputs[self.field], self.longest)

    def _needs(self, name: str) -> None:
        if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
            raise TaskError(f"{self._kind}: {name} is {getattr(self, name)!r}; accepted: a text")
        if self.outputs is not None:
            raise TaskError(f"{self._kind}: outputs are {self.outputs!r}; accepted: none, field says what is compared")


@dataclass(frozen=True, kw_only=True)
class Preference(Compared):
    """The output ``field`` against the example's ``reference``: better 1, worse 0, and ``tie`` for all else.

    Asked in both orders. ``tie=1`` asks whether the answer is at least as good. An answer equal to the reference is a
    tie without a question.

    Range: 0, ``tie`` or 1; between them where votes differ. Reads: the field, the reference. Cost: two calls a vote.
    """

    reference: str
    tie: float = 0.5

    def __post_init__(self) -> None:
        for name in ("field", "question", "reference"):
            self._needs(name)
        if not 0 <= self.tie <= 1:
            raise TaskError(f"preference: tie is {self.tie!r}; accepted: 0 to 1")
        super().__post_init__()

    @property
    def options(self) -> Mapping[str, float]:
        return {"worse": 0.0, "tie": self.tie, "better": 1.0}

    def grade(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], labels: Mapping[str, Any], occasion: str = ""
    ) -> Judged:
        answer, other = self.answer(outputs), _label(self._kind, labels, self.reference, self.longest)
        if answer == other:
            return Judged(self.tie, "equal to the reference")
        context = self.context(inputs, labels, self.reference)
        votes = []
        for seat in self.seats():
            won, reason = self.duel(seat, context, answer, other, occasion)
            option = {0.0: "worse", 1.0: "better"}.get(won, "tie")
            votes.append(Vote(self.options[option], option, reason))
        return self.together(votes)


@dataclass(frozen=True, kw_only=True)
class Ranking(Compared):
    """The place of the output ``field`` among the example's ``references``, fields named from worst to best.

    The answer is compared with each of them as ``Preference`` does; its value is the share that it beats, ties counting
    a half: 0 below all, 1 above all. Where references are inconsistent with one another nothing is concluded from it.

    Range: 0 to 1. Reads: the field, the references. Cost: two calls for each reference and vote.
    """

    references: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("field", "question"):
            self._needs(name)
        if isinstance(self.references, str) or not self.references:
            raise TaskError(f"ranking: references are {self.references!r}; accepted: label fields, from worst to best")
        object.__setattr__(self, "references", tuple(self.references))
        super().__post_init__()

    @property
    def options(self) -> Mapping[str, float]:
        """Above how many of the references."""
        count = len(self.references)
        return {f"above {place}": place / count for place in range(count + 1)}

    def grade(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], labels: Mapping[str, Any], occasion: str = ""
    ) -> Judged:
        answer, context = self.answer(outputs), self.context(inputs, labels, *self.references)
        others = [_label(self._kind, labels, name, self.longest) for name in self.references]
        votes = []
        for seat in self.seats():
            duels = [(0.5, "") if answer == o else self.duel(seat, context, answer, o, occasion) for o in others]
            value = fmean(won for won, _ in duels)
            lost = next(
                (f"below {n}: {why}" for n, (won, why) in zip(self.references, duels, strict=True) if not won), ""
            )
            votes.append(Vote(value, f"above {value * len(others):g} of {len(others)}", lost))
        return self.together(votes)


def _label(kind: str, labels: Mapping[str, Any], name: str, longest: int) -> str:
    if name not in labels:
        raise TaskError(f"{kind}: the example has no label {name!r}; accepted: {', '.join(labels) or 'none'}")
    return shown(labels[name], longest)
