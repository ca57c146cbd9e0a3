"""Criteria of how much was written: ``length`` and ``truncation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import clipped, read, shown
from colever.tasks.criteria.settings import not_empty, not_negative, refuse, settle
from colever.types import Step


@dataclass(frozen=True)
class Length:
    """1 where the length lies in [``low``, ``high``]; outside, it falls linearly to 0: at length 0, and at high + fade.

    ``unit``: ``words`` or ``characters`` of the field, or ``tokens`` of what ``predictor`` wrote (of all that the
    rollout wrote, unless said), which needs no field. ``fade`` 0 means ``high`` itself: twice the length is 0.

    Range: [0, 1]. Reads: the field, or the steps' completions. Cost: none.
    """

    high: int
    low: int = 0
    field: str = ""
    unit: Literal["tokens", "words", "characters"] = "words"
    predictor: str = ""
    fade: int = 0

    def __post_init__(self) -> None:
        settle(self)
        not_negative(self, "low", "fade")
        if self.high < max(1, self.low):
            refuse(self, "high", f"a whole number of at least {max(1, self.low)}")
        if self.unit == "tokens" and self.field:
            refuse(self, "field", "none: tokens are counted of what the predictor wrote")
        if self.unit != "tokens":
            not_empty(self, "field")
            if self.predictor:
                refuse(self, "predictor", f"none with unit {self.unit}; name the field 'predictor.field' instead")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        length = self._tokens(steps) if self.unit == "tokens" else self._written(prediction, steps)
        if length is None:
            return 0.0
        if length < self.low:
            return length / self.low
        return clipped(1 - max(0, length - self.high) / (self.fade or self.high))

    def _written(self, prediction: dspy.Prediction, steps: Sequence[Step]) -> int | None:
        value = read(prediction, steps, self.field)
        text = value if isinstance(value, str) else shown(value)
        if text is None:
            return None
        return len(text.split()) if self.unit == "words" else len(text)

    def _tokens(self, steps: Sequence[Step]) -> int | None:
        lengths = [s.completion.lengths for s in steps if self.predictor in ("", s.predictor)]
        if any(length is None for length in lengths):
            raise TaskError("length: the model tells no tokens; accepted as unit: words, characters")
        return sum(length[1] for length in lengths if length) if lengths else None


@dataclass(frozen=True)
class Truncation:
    """0 where a completion of ``predictor`` (of any, unless said) was cut at the most tokens allowed, else 1.

    Range: 0 or 1. Reads: the steps' completions. Cost: none.
    """

    predictor: str = ""

    def __post_init__(self) -> None:
        settle(self)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        return not any(s.completion.finish_reason == "length" for s in steps if self.predictor in ("", s.predictor))
