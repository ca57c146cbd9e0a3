"""Criterion ``set_f1``: an answer of several items beside the items of the label, in any order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import harmonic, label_of, read, shown, text_of
from colever.tasks.criteria.json_text import parse
from colever.tasks.criteria.settings import not_empty, settle
from colever.tasks.criteria.wording import normal_form
from colever.types import Step

_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,4}[.)])\s+")


@dataclass(frozen=True)
class SetF1:
    """``measure`` of the field's items against the label's: ``f1``, ``precision``, ``recall``, or ``exact`` (0 or 1).

    Items are those of a list, of a JSON list, or of a text split at ``delimiter`` and at line ends, without bullets;
    with ``delimiter=" "`` words. They are compared in normal form (case, punctuation, articles and white space pass),
    or, with ``normalize=false``, as they stand; order and repetition do not count. Two empty sets are equal: 1.

    Range: [0, 1]. Reads: the field, the label. Cost: none.
    """

    field: str
    label: str = ""
    delimiter: str = ","
    measure: Literal["f1", "precision", "recall", "exact"] = "f1"
    normalize: bool = True

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field", "delimiter")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        name = self.label or self.field
        wanted = self._items(label_of(example, name))
        if wanted is None:
            raise TaskError(f"the example's field {name!r} is {example[name]!r}; accepted: a list, or text of items")
        got = self._items(read(prediction, steps, self.field))
        if got is None:
            return 0.0
        if not wanted or not got or self.measure == "exact":
            return float(wanted == got)
        right = len(wanted & got)
        precision, recall = right / len(got), right / len(wanted)
        return {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}[self.measure]

    def _items(self, value: Any) -> set[str] | None:
        """None for what has no items."""
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            text = text_of(value)
            listed = parse(text) if text is not None and text.lstrip().startswith("[") else None
            value = listed if isinstance(listed, list) else None if text is None else self._split(text)
        if not isinstance(value, list | tuple | set | frozenset):
            return None
        texts = [shown(v) or "" for v in value]
        return {self._normal(text) for text in texts if text.strip()}

    def _split(self, text: str) -> list[str]:
        return [item for line in text.splitlines() for item in _BULLET.sub("", line).split(self.delimiter)]

    def _normal(self, text: str) -> str:
        return normal_form(text) if self.normalize else text.strip()
