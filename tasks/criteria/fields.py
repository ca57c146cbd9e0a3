"""How criteria read a rollout: output fields, what a step wrote, labels. Whatever a model can write has a reading.

A *field* is an output field of the prediction; ``predictor.field`` is that of a predictor's last call, ``predictor.*``
the text of that call as the model wrote it, and ``*`` the text of the last call of all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

import dspy

from colever.errors import TaskError
from colever.types import Step

LONGEST = 100_000  # characters; a longer text is not read, so that no criterion takes minutes over one


def read(prediction: dspy.Prediction, steps: Sequence[Step], field: str) -> Any:
    """The value of a field; None where a predictor was not called, or wrote nothing that could be parsed.

    Raises TaskError, with the fields that there are, for a field that the prediction or the predictor has not.
    """
    if field in prediction:
        return prediction[field]
    predictor, _, name = field.rpartition(".")
    if name == "*":
        call = last_call(steps, predictor)
        return None if call is None else call.completion.text
    if not predictor:
        raise TaskError(f"the prediction has no field {field!r}; it has: {', '.join(prediction.keys()) or 'none'}")
    call = last_call(steps, predictor)
    if call is None or call.failed:
        return None
    if name not in call.outputs:
        raise TaskError(f"predictor {predictor!r} has no output field {name!r}; it has: {', '.join(call.outputs)}")
    return call.outputs[name]


def last_call(steps: Sequence[Step], predictor: str = "") -> Step | None:
    """The last step of a predictor ("": of any), None where there is none."""
    return next((s for s in reversed(steps) if not predictor or s.predictor == predictor), None)


def read_text(prediction: dspy.Prediction, steps: Sequence[Step], field: str) -> str | None:
    """A field as text; see ``read`` and ``text_of``."""
    return text_of(read(prediction, steps, field))


def text_of(value: Any) -> str | None:
    """A plain value's text, lone surrogates replaced; None for any other type and for what is too long to read."""
    value = value.value if isinstance(value, Enum) else value
    content = getattr(value, "content", None)  # dspy.Reasoning
    value = content if isinstance(content, str) else value
    if not isinstance(value, str | int | float | Decimal):
        return None
    try:
        text = str(value)
    except ValueError:  # an int of more digits than Python prints
        return None
    return readable(text) if len(text) <= LONGEST else None


def readable(text: str) -> str:
    """Without lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()


def shown(value: Any) -> str | None:
    """A value's text; of a list or a dict its JSON; None where there is none."""
    if isinstance(value, list | tuple | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            return None
    return text_of(value)


def label_of(example: dspy.Example, name: str) -> Any:
    """The example's field ``name``; raises TaskError, with the fields that there are, if it has none."""
    if name not in example:
        raise TaskError(f"the example has no field {name!r}; it has: {', '.join(example.keys()) or 'none'}")
    return example[name]


def labels_of(example: dspy.Example, name: str) -> list[Any]:
    """The accepted answers: a label that is a list holds several. Raises TaskError for an empty list."""
    label = label_of(example, name)
    labels = list(label) if isinstance(label, list | tuple | set | frozenset) else [label]
    if not labels:
        raise TaskError(f"the example's field {name!r} is an empty list; accepted: at least one right answer")
    return labels


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal; False where they cannot be compared (nested too deep, arrays)."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - a value's own __eq__, of any type
        return False


def harmonic(precision: float, recall: float) -> float:
    """F1."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def clipped(value: float) -> float:
    """In [0, 1]; rounding may leave it by a hair, and what is not a number is 0."""
    return min(1.0, max(0.0, float(value))) if math.isfinite(value) else 0.0
