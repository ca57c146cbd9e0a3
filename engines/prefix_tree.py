"""Which prompt tokens the rows of a batch share: a tree of segments, each computed once, in sampling and in training.

Knows token ids; knows nothing of layouts, models, rewards or losses.

A *segment* is a run of prompt tokens that the same rows share: DSPy's preamble and a predictor's demos are the same
in all of its prompts, an example's own fields in those of its G samples, an agent's history so far in all later calls
of its trajectory. A segment's tokens see the segments above it and themselves. A prompt's last token belongs to no
segment but to each row's own branch (see ``prefix_layout``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

LEAST = 8  # a shorter common run is computed once per prompt: another segment costs more than it saves


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``stop`` of every prompt below it; ``row`` is one of the batch that holds it."""

    parent: int  # the segment above; -1: none
    start: int
    stop: int
    row: int
    known: bool = False  # its keys and values are at hand: it is attended to and not computed

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Rows that share one prompt: their indices, the prompt's length, each completion's length, its last segment."""

    rows: tuple[int, ...]
    prompt: int
    completions: tuple[int, ...]
    segment: int = -1  # -1: a prompt of one token

    @property
    def widest(self) -> int:
        return max(self.completions)


@dataclass(frozen=True)
class PrefixTree:
    """A batch's segments, parents before children, and its groups."""

    segments: tuple[Segment, ...]
    groups: tuple[Group, ...]

    @property
    def tokens(self) -> int:
        """How many tokens are computed: every segment that is not known once, and each row's completion."""
        return sum(s.tokens for s in self.segments if not s.known) + sum(sum(g.completions) for g in self.groups)

    def with_known(self, known_G: Sequence[int]) -> PrefixTree:
        """The tree where the first ``known_G`` tokens of each group's prompt need not be computed.

        A segment that is known in part is cut in two. A known segment's ``row`` is of the group that knows it.
        """
        reach = [s.start for s in self.segments]
        row = [s.row for s in self.segments]
        for group, known in zip(self.groups, known_G, strict=True):
            at = group.segment
            while at >= 0:
                end = min(self.segments[at].stop, known)
                if end > reach[at]:
                    reach[at], row[at] = end, group.rows[0]
                at = self.segments[at].parent
        cut: list[Segment] = []
        last = {-1: -1}
        for number, s in enumerate(self.segments):
            parent = last[s.parent]
            if reach[number] > s.start:
                cut.append(Segment(parent, s.start, reach[number], row[number], known=True))
                parent = len(cut) - 1
            if reach[number] < s.stop:
                cut.append(Segment(parent, reach[number], s.stop, s.row))
            last[number] = len(cut) - 1
        groups = tuple(replace(g, segment=last[g.segment]) for g in self.groups)
        return PrefixTree(tuple(cut), groups)


def prefix_tree(input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int) -> PrefixTree:
    """The tree of (B, P + C) left-padded prompts and right-padded completions, without rows that have no completion."""
    split = input_ids.shape[1] - completion_width
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
    prompt_B, completion_B = mask[:, :split].sum(1), mask[:, split:].sum(1)
    rows: dict[bytes, list[int]] = {}
    for row, length in enumerate(prompt_B):
        if completion_B[row]:
            rows.setdefault(ids[row, split - length : split].tobytes(), []).append(row)
    members = list(rows.values())
    heads = [ids[m[0], split - prompt_B[m[0]] : split - 1] for m in members]
    segments: list[Segment] = []
    last = _grow(heads, [m[0] for m in members], segments)
    groups = (
        Group(tuple(m), int(prompt_B[m[0]]), tuple(int(completion_B[row]) for row in m), segment)
        for m, segment in zip(members, last, strict=True)
    )
    return PrefixTree(tuple(segments), tuple(groups))


def _grow(heads: Sequence[np.ndarray], rows: Sequence[int], segments: list[Segment]) -> list[int]:
    """Append the segments of ``heads``; each head's last one. Depth first, without recursion: histories may be deep."""
    last = [-1] * len(heads)
    order = sorted(range(len(heads)), key=lambda i: heads[i].tolist())
    pending = [(order, 0, -1)] if order else []
    while pending:
        members, start, parent = pending.pop()
        first = heads[members[0]]
        stop = common_length(first, heads[members[-1]])  # in order, the ends share least
        equal = len(heads[members[-1]]) == stop
        if stop > start and (equal or stop - start >= LEAST):
            segments.append(Segment(parent, start, stop, rows[members[0]]))
            start, parent = stop, len(segments) - 1
        ended = [m for m in members if len(heads[m]) == start]
        for m in ended:
            last[m] = parent
        pending += [(run, start, parent) for run in _runs(heads, members[len(ended) :], stop)]
    return last


def _runs(heads: Sequence[np.ndarray], members: Sequence[int], place: int) -> Iterator[list[int]]:
    """Members in order, apart where their token at ``place`` differs; those that end there are a run of their own."""
    run: list[int] = []
    before: int | None = None
    for m in members:
        token = int(heads[m][place]) if len(heads[m]) > place else None
        if run and token != before:
            yield run
            run = []
        run.append(m)
        before = token
    if run:
        yield run


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    least = min(len(one), len(other))
    differ = np.flatnonzero(one[:least] != other[:least])
    return int(differ[0]) if len(differ) else least
