"""Criterion ``answer_type``: an answer is of the kind that was asked for, right or wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import dspy

from colever.tasks.criteria.fields import read, text_of
from colever.tasks.criteria.json_text import parse
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.types import Step

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,400})(?:\.\d{1,400})?(?:[eE][-+]?\d{1,3})?", re.ASCII)
_INT = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,400})", re.ASCII)
_NAME = re.compile(r"[^\W\d_a-z][^\W\d_]*(?:[-'’.][^\W\d_]*)*")  # one part: starts with no small letter
_PARTICLES = {"de", "da", "di", "del", "van", "von", "der", "den", "la", "le", "bin", "ibn", "al", "of", "the", "and"}


@dataclass(frozen=True)
class AnswerType:
    """1 where the field is, or reads as, a value of ``type`` and nothing else, else 0.

    ``int`` and ``float`` (whole numbers too) as ``-1,234.5``, finite; ``bool`` as true, false, yes, no; ``date`` in ISO
    form or one of ``formats`` (``%d.%m.%Y``); ``list`` as a JSON list, or at least two bullets or items between commas;
    ``name`` as one to six words with a capital first; ``word`` as one word; ``text`` as anything but white space.

    Range: 0 or 1. Reads: the field. Cost: none.
    """

    field: str
    type: Literal["int", "float", "bool", "date", "list", "name", "word", "text"]
    formats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        if self.formats and (self.type != "date" or not all("%" in f for f in self.formats)):
            refuse(self, "formats", "formats of dates such as %d.%m.%Y, with type date")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        value = read(prediction, steps, self.field)
        if self.type == "list" and isinstance(value, list | tuple):
            return True
        if self.type == "date":
            return isinstance(value, date) or _is_date((text_of(value) or "").strip(), self.formats)
        if isinstance(value, bool) and self.type != "bool":
            return False
        text = (text_of(value) or "").strip()
        return bool(text) and _READS[self.type](text)


def _is_int(text: str) -> bool:
    return _INT.fullmatch(text) is not None


def _is_float(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(float(text.replace(",", ""))) != float("inf")


def _is_bool(text: str) -> bool:
    return text.casefold().rstrip(".") in ("true", "false", "yes", "no")


def _is_date(text: str, formats: Sequence[str]) -> bool:
    if not 0 < len(text) <= 100:
        return False
    readers: list[Callable[[str], Any]] = [date.fromisoformat, datetime.fromisoformat] if not formats else []
    readers += [lambda t, f=f: datetime.strptime(t, f) for f in formats]  # type: ignore[misc]
    return any(_works(reader, text) for reader in readers)


def _works(reader: Callable[[str], Any], text: str) -> bool:
    try:
        reader(text)
    except (ValueError, OverflowError):
        return False
    return True


def _is_list(text: str) -> bool:
    if text.startswith("["):
        return isinstance(parse(text), list)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return all(re.match(r"(?:[-*•]|\d{1,4}[.)])\s+\S", line) for line in lines)
    items = text.split(",")
    return len(items) > 1 and all(item.strip() for item in items)


def _is_name(text: str) -> bool:
    words = text.split() if len(text) <= 200 else []
    parts = [w for w in words if w not in _PARTICLES]
    return 0 < len(words) <= 6 and bool(parts) and all(_is_part(w) for w in parts) and words[-1] not in _PARTICLES


def _is_part(word: str) -> bool:
    return _NAME.fullmatch(word) is not None and not word[0].islower()


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", text) is not None


_READS: dict[str, Callable[[str], bool]] = {
    "int": _is_int, "float": _is_float, "bool": _is_bool, "list": _is_list, "name": _is_name, "word": _is_word,
    "text": bool,
}  # fmt: skip
