"""What all criteria that ask language models have in common: who is asked, how often, and what becomes of the votes.

Knows votes, options and values; how a question is put is in ``material``, how a model is asked in ``engines/bench``.
A judge that fails, or that says nothing that can be read, raises InfrastructureError: no score is made of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Literal

import dspy

from colever.engines.bench import Question, bench
from colever.errors import TaskError
from colever.tasks.criteria.material import (
    ENDING,
    REMINDER,
    SYSTEM,
    Section,
    code_of,
    options_line,
    outputs_of,
    quoted,
    read_verdict,
    same_word,
    sections,
)
from colever.tasks.judged import Judged
from colever.types import Step


@dataclass(frozen=True)
class Anchor:
    """A fixed piece of work whose verdict is known: what a judge says of it at a run's start and end is compared."""

    choice: str
    outputs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.choice, *map(str, (self.outputs, self.inputs, self.labels))))


@dataclass(frozen=True)
class Vote:
    """One model's verdict as a value in [0, 1], and why."""

    value: float
    option: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Settings that every kind of judge has.

    ``models``: one or several, each asked ``votes`` times; none: the one of the setting ``judge.model``. ``inputs``,
    ``outputs``, ``labels``: the fields that are shown (None: all); of outputs also ``predictor.field``, what a
    predictor said last. A value longer than ``longest`` characters is shown without its middle. ``tolerance``: how far
    the mean over the anchors may lie from what they should be.
    """

    models: tuple[str, ...] = ()
    votes: int = 1
    combine: Literal["mean", "median"] = "mean"
    temperature: float = 0.0
    max_tokens: int = 1024
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = ()
    longest: int = 20_000
    anchors: tuple[Anchor, ...] = ()
    tolerance: float = 0.25

    def __post_init__(self) -> None:
        for name in ("models", "inputs", "outputs", "labels", "anchors"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TaskError(f"{self._kind}: {name} is {value!r}; accepted: a list of names")
            object.__setattr__(self, name, value if value is None else tuple(value))
        made = (anchor if isinstance(anchor, Anchor) else Anchor(**anchor) for anchor in self.anchors)
        object.__setattr__(self, "anchors", tuple(made))
        for name, least in (("votes", 1), ("max_tokens", 1), ("longest", 100)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TaskError(f"{self._kind}: {name} is {value!r}; accepted: {least} or more")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise TaskError(f"{self._kind}: temperature is {self.temperature!r}; accepted: 0 to 2")
        if self.votes > 1 and self.temperature == 0:
            raise TaskError(
                f"{self._kind}: {self.votes} votes at temperature 0 are one; accepted: a temperature above 0"
            )
        if self.combine not in ("mean", "median"):
            raise TaskError(f"{self._kind}: combine is {self.combine!r}; accepted: mean, median")
        if not 0 <= self.tolerance <= 1:
            raise TaskError(f"{self._kind}: tolerance is {self.tolerance!r}; accepted: 0 to 1")
        for anchor in self.anchors:
            if anchor.choice not in self.options:
                raise TaskError(
                    f"{self._kind}: an anchor's choice is {anchor.choice!r}; accepted: {', '.join(self.options)}"
                )

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> Judged:
        return self.grade(example.inputs().toDict(), outputs_of(prediction, steps), example.labels().toDict())

    # --- what a kind says ----------------------------------------------------------------------------

    @property
    def options(self) -> Mapping[str, float]:
        """What a verdict may be, with its value, from the lowest on."""
        raise NotImplementedError

    def grade(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], labels: Mapping[str, Any], occasion: str = ""
    ) -> Judged:
        """The value of one piece of work, given by its fields."""
        raise NotImplementedError

    # --- what kinds share ----------------------------------------------------------------------------

    @property
    def _kind(self) -> str:
        return type(self).__name__.lower()

    def with_model(self, name: str) -> Panel:
        return replace(self, models=(name,))

    def seats(self) -> list[tuple[str, int]]:
        """(model, number of the vote) of each vote. Raises TaskError where no model is named."""
        if not self.models:
            raise TaskError(
                f"{self._kind}: no model is named; accepted: models=(NAME,) in the rubric, or --set judge.model=NAME"
            )
        return [(model, number) for model in self.models for number in range(self.votes)]

    def shown(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], labels: Mapping[str, Any]) -> list[Section]:
        """The fields that are shown, as titled texts."""
        own = {name: value for name, value in outputs.items() if self.outputs is not None or "." not in name}
        kinds = {"input": (inputs, self.inputs), "output": (own, self.outputs), "label": (labels, self.labels)}
        return sections(kinds, self.longest)

    def put(
        self, model: str, number: int, material: Sequence[Section], question: str, options: Sequence[str], occasion: str
    ) -> tuple[str, str]:
        """One question with its material to one model: (option, reason)."""
        code, line = code_of(material), options_line(options)
        asked = Question(
            model=model,
            system=SYSTEM.format(code=code),
            text="\n\n".join([quoted(material, code), question, ENDING.format(options=line)]),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            number=number,
            occasion=occasion,
            reminder=REMINDER.format(lines=", ".join(f"VERDICT: {option}" for option in options)),
        )
        return bench().ask(asked, lambda text: read_verdict(text, options))

    def together(self, votes: Sequence[Vote]) -> Judged:
        """The votes as one value; its reason is that of a vote that lies nearest to it, or below it."""
        values = [vote.value for vote in votes]
        value = fmean(values) if self.combine == "mean" else median(values)
        told = min(votes, key=lambda vote: (abs(vote.value - value), vote.value))
        reason = f"{told.option}: {told.reason}" if told.reason else told.option
        return Judged(min(1.0, max(0.0, value)), reason, values if len(values) > 1 else ())


def checked_options(kind: str, names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Choices with their values. Raises TaskError for fewer than two, equal ones, or values that do not rise."""
    if isinstance(names, str) or len(names) < 2 or any(not isinstance(n, str) or not same_word(n) for n in names):
        raise TaskError(f"{kind}: choices are {names!r}; accepted: two words or more, from worst to best")
    if len({same_word(n) for n in names}) < len(names) or any("|" in n or "\n" in n for n in names):
        raise TaskError(f"{kind}: choices are {names!r}; accepted: different words, each on one line, without |")
    found = list(values) or [place / (len(names) - 1) for place in range(len(names))]
    rising = all(a <= b for a, b in pairwise(found))
    if len(found) != len(names) or not rising or not 0 <= found[0] <= found[-1] <= 1 or found[0] == found[-1]:
        raise TaskError(f"{kind}: values are {values!r}; accepted: one for each choice, rising within 0 to 1")
    return dict(zip(names, found, strict=True))
