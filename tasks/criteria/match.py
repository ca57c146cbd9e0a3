"""Criteria that hold an output field beside a label. Each is 0 or 1, and costs nothing but the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from colever.tasks.criteria.fields import label_of, labels_of, read, read_text, same, text_of
from colever.tasks.criteria.settings import not_empty, settle
from colever.tasks.criteria.wording import normal_form
from colever.types import Step


@dataclass(frozen=True)
class Exact:
    """1 where the output ``field`` equals the example's ``label`` (unless said, the field of the same name), else 0.

    Range: 0 or 1. Reads: the field, the label. Cost: none.
    """

    field: str
    label: str = ""

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        return same(read(prediction, steps, self.field), label_of(example, self.label or self.field))


@dataclass(frozen=True)
class Normalized:
    """1 where the field's text equals a label's in normal form: Unicode (NFKC), white space, invisible characters.

    Case, punctuation and the articles a, an, the are passed over too, unless ``case``, ``punctuation`` or ``articles``
    is true. Signs and decimal marks of numbers always count. A label that is a list holds several right answers.

    Range: 0 or 1. Reads: the field, the label. Cost: none.
    """

    field: str
    label: str = ""
    case: bool = False
    punctuation: bool = False
    articles: bool = False

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        text = read_text(prediction, steps, self.field)
        labels = [text_of(label) for label in labels_of(example, self.label or self.field)]
        return text is not None and any(self._equal(text, label) for label in labels if label is not None)

    def _equal(self, text: str, label: str) -> bool:
        one, other = (normal_form(t, self.case, self.punctuation, self.articles) for t in (text, label))
        return one == other
