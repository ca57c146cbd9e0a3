"""Criterion ``citation``: an answer cites passages that were retrieved, and the right ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import harmonic, label_of, read, read_text, text_of
from colever.tasks.criteria.settings import in_unit, not_empty, refuse, settle
from colever.types import Step

_CITED = re.compile(r"\[([^\[\]\n]{1,80})\]")
_RANGE = re.compile(r"(\d{1,4})\s?[-–]\s?(\d{1,4})", re.ASCII)
_KEYS = ("id", "title", "long_text", "text")
_UNKNOWN = -1


@dataclass(frozen=True)
class Citation:
    """How what the field cites, as ``[2]``, ``[1, 3]``, ``[2-4]`` or ``[doc7]``, stands to the passages that it had.

    ``measure``: ``exist``, the share of the cited that were retrieved; or ``precision``, ``recall`` or ``f1`` of the
    cited against the example's field ``gold``. ``passages`` is a field of the prediction, or else of the example: a
    list of texts or of objects with an ``id`` or ``title``. A number is a place in the list, from ``first``, unless it
    is an id. Gold passages are given by place, id, title or text. ``empty``: what an answer without citations is worth
    (for recall: 0). A passage cited that does not exist counts against precision.

    Range: [0, 1]. Reads: the field, the passages, gold. Cost: none.
    """

    field: str
    passages: str = "passages"
    measure: Literal["exist", "precision", "recall", "f1"] = "exist"
    gold: str = ""
    first: int = 1
    empty: float = 0.0

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field", "passages")
        in_unit(self, "empty")
        if (self.measure == "exist") == bool(self.gold):
            refuse(self, "gold", "a field of the example with measure precision, recall, f1; none with exist")
        if self.measure == "recall" and self.empty:
            refuse(self, "empty", "0 with measure recall")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        places = _places(self._passages(example, prediction, steps), self.first)
        gold = self._gold(example, places) if self.gold else set()
        text = read_text(prediction, steps, self.field)
        cited = {places.get(name, (_UNKNOWN, name)) for name in _cited(text or "")}
        if text is None or not cited:
            return self.empty if text is not None else 0.0
        if self.measure == "exist":
            return sum(place[0] != _UNKNOWN for place in cited) / len(cited)
        right = len(cited & gold)
        precision, recall = right / len(cited), right / len(gold)
        return {"precision": precision, "recall": recall, "f1": harmonic(precision, recall)}[self.measure]

    def _passages(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Any:
        if self.passages in example and self.passages not in prediction:
            return example[self.passages]
        return read(prediction, steps, self.passages)

    def _gold(self, example: dspy.Example, places: Mapping[str, tuple[int, str]]) -> set[tuple[int, str]]:
        """Gold passages that were not retrieved stay in it: nothing can cite them."""
        gold = label_of(example, self.gold)
        names = [_name(g) for g in (gold if isinstance(gold, list | tuple | set) else [gold])]
        if not names:
            raise TaskError(f"the example's field {self.gold!r} is empty; accepted: at least one gold passage")
        return {places.get(name, (_UNKNOWN, f"gold {name}")) for name in names}


def _cited(text: str) -> set[str]:
    """The names in brackets; a range gives each number of it, at most a hundred."""
    names: set[str] = set()
    for inside in _CITED.findall(text):
        for part in re.split(r"[,;]", inside):
            if match := _RANGE.fullmatch(part.strip()):
                names |= {str(n) for n in range(int(match[1]), min(int(match[2]), int(match[1]) + 99) + 1)}
            elif part.strip():
                names.add(part.strip().casefold())
    return names


def _places(passages: Any, first: int) -> dict[str, tuple[int, str]]:
    """Every name that a passage goes by → (its place, "")."""
    places: dict[str, tuple[int, str]] = {}
    listed = list(passages) if isinstance(passages, list | tuple) else []
    for place in range(len(listed)):
        places[str(place + first)] = place, ""
    for place, passage in enumerate(listed):
        keys = [passage.get(k) for k in _KEYS] if isinstance(passage, Mapping) else [passage]
        places.update({_name(key): (place, "") for key in keys if text_of(key)})
    return places


def _name(value: Any) -> str:
    return (text_of(value) or "").strip().casefold()
