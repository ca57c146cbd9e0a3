"""Criterion ``regex``: a field holds a pattern, or does not. Searches end after a second, whatever the pattern."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
import regex

from colever.tasks.criteria.fields import read_text
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.types import Step

SECONDS = 1.0  # of the process: a search takes milliseconds unless the pattern backtracks without end


@functools.lru_cache(maxsize=256)
def compiled(pattern: str, flags: int = 0) -> Any:
    """A pattern as Python's ``re`` reads it. Raises ``regex.error`` for what is none."""
    return regex.compile(pattern, flags | regex.VERSION0)


def found(pattern: str, text: str, mode: str = "search", flags: int = 0) -> bool | None:
    """Whether a text holds a pattern; None where that cannot be told in a second."""
    try:
        return getattr(compiled(pattern, flags), mode)(text, timeout=SECONDS) is not None
    except TimeoutError:
        return None


@dataclass(frozen=True)
class Regex:
    """1 where the field's text holds ``pattern`` (``search``) or is it (``fullmatch``); with ``absent`` the reverse.

    The syntax is that of Python's ``re``; ``case=false`` passes over case, ``dotall`` lets a dot match a line's end. A
    text on which the pattern backtracks for more than a second scores 0, and so does one of over 100,000 characters.

    Range: 0 or 1. Reads: the field. Cost: none.
    """

    field: str
    pattern: str
    mode: Literal["search", "fullmatch"] = "search"
    case: bool = True
    dotall: bool = False
    absent: bool = False

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field", "pattern")
        try:
            compiled(self.pattern, self._flags)
        except (regex.error, OverflowError, RecursionError) as error:
            refuse(self, "pattern", f"a regular expression ({error})")

    @property
    def _flags(self) -> int:
        return (0 if self.case else regex.IGNORECASE) | (regex.DOTALL if self.dotall else 0)

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        text = read_text(prediction, steps, self.field)
        seen = None if text is None else found(self.pattern, text, self.mode, self._flags)
        return seen is not None and seen is not self.absent
