"""Criteria that hold an output field beside a label. Each is 0 or 1, and costs nothing but the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from colever.types import Step


@dataclass(frozen=True)
class Exact:
    """1 where the output ``field`` equals the example's ``label`` (unless said, the field of the same name), else 0."""

    field: str
    label: str = ""

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        return bool(prediction[self.field] == example[self.label or self.field])
