"""Checks of a criterion's settings: every message names the kind, the setting, and what is accepted."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from colever.errors import TaskError


def kind_name(kind: type) -> str:
    """``AnswerType`` → ``answer_type``: what a rubric's file calls the class."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


def settle(criterion: Any) -> None:
    """Holds every field beside its annotation; a list given for a tuple, or an int for a float, becomes one.

    Raises TaskError for a value of another type, one outside a Literal, or a float that is not finite.
    """
    kind: Any = type(criterion)
    for name, annotation in _annotations(kind).items():
        value = getattr(criterion, name)
        if get_origin(annotation) is tuple and isinstance(value, list):
            value = tuple(value)
        if annotation is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not _fits(value, annotation):
            refuse(criterion, name, _accepted(annotation))
        object.__setattr__(criterion, name, value)


def refuse(criterion: Any, name: str, accepted: str) -> None:
    """Raises the TaskError of a setting that is not accepted."""
    raise TaskError(f"{kind_name(type(criterion))}: {name} is {getattr(criterion, name)!r}; accepted: {accepted}")


def not_negative(criterion: Any, *names: str) -> None:
    for name in names:
        if getattr(criterion, name) < 0:
            refuse(criterion, name, "0 or a positive number")


def in_unit(criterion: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(criterion, name) <= 1:
            refuse(criterion, name, "a number in [0, 1]")


def not_empty(criterion: Any, *names: str) -> None:
    for name in names:
        if not getattr(criterion, name):
            refuse(criterion, name, "anything but an empty one")


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(annotation))
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(v, get_args(annotation)[0]) for v in value)
    if annotation is float:
        return isinstance(value, float) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or annotation) if isinstance(origin or annotation, type) else True


def _accepted(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(str(a) for a in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "a list of text"
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
    return words.get(annotation, str(annotation))
