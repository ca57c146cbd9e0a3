"""Criterion ``xml``: a text is laid out in tags, such as ``<think>…</think><answer>…</answer>``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.parsers import expat

import dspy

from colever.tasks.criteria.fields import read_text
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.types import Step


@dataclass(frozen=True)
class Xml:
    """The share of what is asked of a text in tags; with ``partial=false`` 1 where all of it holds, else 0.

    Parts: each of ``tags`` stands once, opened and closed, not inside another of them and not empty; with ``order``
    they come in the order given; with ``only`` nothing but white space stands outside of them; with ``well_formed``
    the whole is XML (``a < b`` is not). The last three count only where every tag is there. Text inside a tag is free.

    Range: [0, 1]. Reads: the field (``*``: what the last call wrote). Cost: none.
    """

    tags: tuple[str, ...]
    field: str = "*"
    order: bool = True
    only: bool = True
    well_formed: bool = False
    partial: bool = True

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field", "tags")
        if any(not re.fullmatch(r"[A-Za-z_][\w.-]*", t) for t in self.tags) or len(set(self.tags)) < len(self.tags):
            refuse(self, "tags", "names of tags that differ, such as think, answer")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        text = read_text(prediction, steps, self.field)
        held = [] if text is None else list(self._held(text))
        share = sum(held) / len(held) if held else 0.0
        return share if self.partial or share == 1 else 0.0

    def _held(self, text: str) -> Iterator[bool]:
        spans = _spans(text, self.tags)
        yield from (tag in spans for tag in self.tags)
        every = len(spans) == len(self.tags)
        if self.order:
            starts = [spans[tag][0] for tag in self.tags if tag in spans]
            yield every and starts == sorted(starts)
        if self.only:
            yield every and not _outside(text, sorted(spans.values())).strip()
        if self.well_formed:
            yield every and _is_xml(text)


def _spans(text: str, tags: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where each tag that stands as it should begins and ends."""
    marks = list(re.finditer(rf"<(/?)({'|'.join(map(re.escape, tags))})\s*>", text))
    counts = Counter(mark[2] for mark in marks)
    spans: dict[str, tuple[int, int]] = {}
    for opening, closing in pairwise(marks):
        tag = opening[2]
        pair = not opening[1] and closing[1] and closing[2] == tag and counts[tag] == 2
        if pair and text[opening.end() : closing.start()].strip():
            spans[tag] = opening.start(), closing.end()
    depth = 0  # a tag inside another's open mark is not its own part
    for mark in marks:
        if not mark[1] and depth and mark[2] in spans:
            del spans[mark[2]]
        depth += -1 if mark[1] else 1
    return spans


def _outside(text: str, spans: Sequence[tuple[int, int]]) -> str:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def _is_xml(text: str) -> bool:
    """Whether a text, in an element of its own, parses; entities are not expanded, so that none can grow."""
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(f"<r>{text}</r>", True)
    except (expat.ExpatError, ValueError):
        return False
    return True


def _refuse_entity(*_: object) -> None:
    raise ValueError("an entity is declared")
