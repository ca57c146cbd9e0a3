"""Criterion ``math``: an answer equals the label as mathematics, by math-verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import labels_of, read_text, text_of
from colever.tasks.criteria.math_process import equal
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.types import Step

LONGEST_ANSWER = 10_000  # characters


@dataclass(frozen=True)
class Math:
    """1 where the field's expression equals the label's, as ``\\frac{2}{4}`` does ``1/2``, else 0.

    Of a text the last expression counts: in ``\\boxed{}``, between ``$``, or a number; a text that is no more than an
    expression is read as LaTeX. Numbers are rounded to ``digits`` decimals. What takes more than ``seconds`` to parse
    or to compare scores 0 (``9^9^9^9``), and so does a text of more than 10,000 characters. A label that is a list
    holds several right answers. Needs the extra ``colever[math]``.

    Range: 0 or 1. Reads: the field, the label. Cost: 1 to 100 ms, one at a time, in a process that takes 2 s to start.
    """

    field: str
    label: str = ""
    digits: int = 6
    seconds: int = 5

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        if not 0 <= self.digits <= 15:
            refuse(self, "digits", "0 to 15")
        if not 1 <= self.seconds <= 60:
            refuse(self, "seconds", "1 to 60")
        if find_spec("math_verify") is None:
            raise TaskError("math: math-verify is not installed; run: pip install 'colever[math]'")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        name = self.label or self.field
        labels = tuple(text for label in labels_of(example, name) if (text := text_of(label)))
        text = read_text(prediction, steps, self.field)
        if text is None or len(text) > LONGEST_ANSWER or not text.strip():
            return False
        value = equal(labels, text, self.digits, self.seconds) if labels else None
        if value is None:
            raise TaskError(f"the example's field {name!r} is {example[name]!r}; accepted: a number or an expression")
        return value
