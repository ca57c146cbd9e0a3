"""Criterion ``choice``: one of several options, named by its letter or its text."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import label_of, read, text_of
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.tasks.criteria.wording import normal_form
from colever.types import Step

_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]{1,200})\}")
_ALONE = re.compile(r"\W{0,9}(?:(?:option|choice|answer)\b[\s:]{0,9})?\W{0,9}([a-z])\W{0,9}", re.IGNORECASE)
_LEADING = re.compile(r"[\s*_]{0,9}[(\[]?([A-Za-z])[)\].:][\s*_]{0,9}(.+)", re.DOTALL)
_SAID = re.compile(r"\b(?i:answer|choice|option)(?i:\s+is|\s*:)?[\s:*_]{0,9}[(\[]?\s?\\?([A-Z])\b(?!['’])")


@dataclass(frozen=True)
class Choice:
    """1 where the field names the same option as the label, by text or by letter, else 0.

    Read are an option's text, ``B``, ``(b)``, ``B) text``, ``the answer is B``, ``\\boxed{B}``, and prose that has
    one option's text and no other's. Several options named are none, and so is a letter beside another option's text.
    ``letters=false`` reads texts alone. ``options`` are the same for every example, or stand in the example's field
    ``options_from``. A label is an option's text, its letter, or its number from 0.

    Range: 0 or 1. Reads: the field, the label, perhaps the options of the example. Cost: none.
    """

    field: str
    label: str = ""
    options: tuple[str, ...] = ()
    options_from: str = ""
    letters: bool = True

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        if bool(self.options) == bool(self.options_from):
            refuse(self, "options", "at least two options, or options_from (the example's field that holds them)")
        if self.options:
            normal = [normal_form(o) for o in self.options]
            if len(self.options) < 2 or len(set(normal)) < len(normal):
                refuse(self, "options", "at least two that differ")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        options = [normal_form(o) for o in self._options(example)]
        label = label_of(example, self.label or self.field)
        wanted = _labelled(label, options)
        if wanted is None:
            raise TaskError(
                f"the example's field {self.label or self.field!r} is {label!r}; accepted: one of {options}"
            )
        text = text_of(read(prediction, steps, self.field))
        return text is not None and _named(text, options, self.letters) == wanted

    def _options(self, example: dspy.Example) -> Sequence[str]:
        if self.options:
            return self.options
        options = label_of(example, self.options_from)
        if not isinstance(options, list | tuple) or not 2 <= len(options) <= 26:
            raise TaskError(
                f"the example's field {self.options_from!r} is {options!r}; accepted: a list of 2 to 26 options"
            )
        return [text_of(o) or "" for o in options]


def _labelled(label: Any, options: Sequence[str]) -> int | None:
    if isinstance(label, int) and not isinstance(label, bool):
        return label if 0 <= label < len(options) else None
    text = text_of(label)
    return None if text is None else _named(text, options)


def _named(text: str, options: Sequence[str], letters: bool = True) -> int | None:
    """The one option that a text names; None for none and for several."""
    boxed = _BOXED.findall(text)
    text = boxed[-1] if boxed else text
    whole = normal_form(text)
    if whole in options:
        return options.index(whole)
    if letters:
        if alone := _ALONE.fullmatch(text):
            return _place(alone[1], options)
        if (leading := _LEADING.fullmatch(text)) and normal_form(leading[2]) in options:
            place = options.index(normal_form(leading[2]))
            return place if place == _place(leading[1], options) else None
        if said := {_place(letter, options) for letter in _SAID.findall(text)}:
            return said.pop() if len(said) == 1 else None
    named = {i for i, option in enumerate(options) if option and _holds(whole, option, options)}
    return named.pop() if len(named) == 1 else None


def _place(letter: str, options: Sequence[str]) -> int | None:
    place = string.ascii_uppercase.find(letter.upper())
    return place if 0 <= place < len(options) else None


def _holds(text: str, option: str, options: Sequence[str]) -> bool:
    """Whether a text has an option's words apart from longer options that hold them (``cat`` in ``black cat``)."""
    for longer in sorted((o for o in options if o != option and option in o), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(longer)}(?!\w)", " ", text)
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
