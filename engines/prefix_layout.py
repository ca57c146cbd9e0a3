"""Where the tokens of a batch lie so that every shared prompt token is computed once, and what that saves.

Knows a tree of prompts and token tensors; knows nothing of models, rewards or losses.

A *branch* is one row's last prompt token followed by its completion without its last token, so a branch has one
position per completion token, and each position predicts exactly one. Segments (see ``prefix_tree``) and branches
lie in one packed row without padding (embeddings, norms, projections and MLPs see no padded token); attention alone
gathers them into *blocks* of similar lengths, where each sees its *path*, the segments above it, and itself. Positions
are those in the row's own prompt and completion.

Keys and values lie in a *pool*: those of known segments first, as far as there are any, then the packed row's.

Shapes: T packed tokens, K known ones, N completion tokens, B rows of a batch; in a block R segments or branches of at
most C positions under U paths of at most P; S attention slots of all blocks, padding included.

Departure from "one row with a block-diagonal mask": a dense mask over a prompt and its G completions costs
(P + G·C)² attention and loses where completions are long; here attention costs P² / 2 + G·C·(P + C).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from colever.engines.prefix_tree import Group, PrefixTree, prefix_tree

PADDING = 1.25  # a block takes in a family as long as padded attention costs at most this factor
BLOCK_TOKENS = 2**16  # and as long as its rows' keys, gathered, are no more
KEPT_MASK = 2**22  # elements of a mask that is kept from layer to layer


@dataclass(frozen=True)
class Block:
    """A padded part of the attention: R rows (segments or branches) of at most C positions, U paths of at most P."""

    rows: int
    row_width: int
    paths: int
    path_width: int
    path_UP: torch.Tensor  # places in the pool, flattened; 0 where a path is padded
    path_R: torch.Tensor  # the path of each row
    path_length_R: torch.Tensor
    equal: int  # rows per path where they are equal in number and in order, else 0
    full: bool  # every path of the block is as wide as the block
    masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        return self.rows * self.row_width

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """(R or 1, 1, C, P + C), additive: own path without its padding, then itself causally."""
        if dtype in self.masks:
            return self.masks[dtype]
        device, C, P = self.path_R.device, self.row_width, self.path_width
        own = torch.ones(C, C, dtype=torch.bool, device=device).tril()
        lengths = self.path_length_R[:1] if self.full else self.path_length_R
        above = torch.arange(P, device=device)[None, :] < lengths[:, None]
        seen = torch.cat([above[:, None, :].expand(-1, C, -1), own.expand(len(lengths), -1, -1)], -1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        if mask.numel() <= KEPT_MASK:
            self.masks[dtype] = mask
        return mask


@dataclass(frozen=True)
class Layout:
    """Where every token of a batch lies in the packed row, and how attention gathers it."""

    input_ids_T: torch.Tensor
    positions_T: torch.Tensor
    blocks: tuple[Block, ...]
    slot_S: torch.Tensor | None  # packed position of each attention slot; None: packed order is slot order
    place_T: torch.Tensor | None  # slot of each packed position
    keep_S: torch.Tensor | None  # 0 at padded slots; None: no padding
    branch_N: torch.Tensor  # packed position that predicts each completion token
    label_N: torch.Tensor  # that completion token
    target_N: torch.Tensor  # where its log-probability goes in the flattened (B, completion width)
    begins: dict[int, int]  # where each segment begins in the pool
    known: int = 0  # K

    @property
    def tokens(self) -> int:
        return self.input_ids_T.numel()


@dataclass(frozen=True)
class _Item:
    """A segment, or the branch of a row: ``length`` tokens of row ``row`` from position ``start`` on."""

    row: int
    start: int
    length: int
    segment: int = -1  # -1: a branch


@dataclass(frozen=True)
class _Family:
    """The segments, or the branches, right below one segment: they see the same path."""

    parent: int
    items: tuple[_Item, ...]

    @property
    def path(self) -> int:
        return self.items[0].start

    @property
    def widest(self) -> int:
        return max(item.length for item in self.items)


def build_layout(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int, tree: PrefixTree | None = None
) -> Layout:
    """The layout of a batch as TRL pads it: prompts left, completions right. Every row has a prompt token."""
    tree = prefix_tree(input_ids, attention_mask, completion_width) if tree is None else tree
    width, device = input_ids.shape[1], input_ids.device
    split = width - completion_width
    prompt_B = attention_mask[:, :split].sum(1).tolist()
    blocks = list(_blocks(_families(tree)))
    known = sum(s.tokens for s in tree.segments if s.known)
    begins = _segment_begins(tree, blocks, known)
    packed, positions, slots, branch, labels, targets, made = [], [], [], [], [], [], []
    at = 0
    for families in blocks:
        made.append(_block(tree, families, begins, device))
        for item in (i for family in families for i in family.items):
            begin = split - prompt_B[item.row] + item.start + item.row * width  # in the flattened batch
            packed.append(torch.arange(begin, begin + item.length))
            positions.append(torch.arange(item.start, item.start + item.length))
            slots.append(_padded(at, item.length, made[-1].row_width))
            if item.segment < 0:
                branch.append(torch.arange(at, at + item.length))
                labels.append(torch.arange(begin + 1, begin + 1 + item.length))
                targets.append(torch.arange(item.length) + item.row * completion_width)
            at += item.length
    flat = input_ids.reshape(-1)
    return Layout(
        input_ids_T=flat[torch.cat(packed).to(device)],
        positions_T=torch.cat(positions).to(device),
        blocks=tuple(made),
        **_places(torch.cat(slots), at, device),
        branch_N=torch.cat(branch).to(device),
        label_N=flat[torch.cat(labels).to(device)],
        target_N=torch.cat(targets).to(device),
        begins=begins,
        known=known,
    )


def _families(tree: PrefixTree) -> list[_Family]:
    segments: dict[int, list[_Item]] = {}
    for number, s in enumerate(tree.segments):
        if not s.known:
            segments.setdefault(s.parent, []).append(_Item(s.row, s.start, s.tokens, number))
    branches: dict[int, list[_Item]] = {}
    for g in tree.groups:
        items = [_Item(row, g.prompt - 1, length) for row, length in zip(g.rows, g.completions, strict=True)]
        branches.setdefault(g.segment, []).extend(items)
    return [_Family(parent, tuple(items)) for kind in (segments, branches) for parent, items in kind.items()]


def _blocks(families: Iterable[_Family]) -> Iterator[list[_Family]]:
    """Families of similar lengths together, as long as padding adds at most ``PADDING`` to attention's cost."""
    block: list[_Family] = []
    exact = 0
    for f in sorted(families, key=lambda f: (f.path, f.widest)):
        own = _attention_cost([f])
        if block and not _joins(block, f, exact + own):
            yield block
            block, exact = [], 0
        block.append(f)
        exact += own
    if block:
        yield block


def _joins(block: Sequence[_Family], family: _Family, exact: int) -> bool:
    """Whether a family may be padded to one block with others, whose attention without padding costs ``exact``."""
    if not block[0].path and family.path:
        return False  # plain causal attention, which masks nothing, against attention with a path
    families = [*block, family]
    keys = sum(len(f.items) for f in families) * max(f.path + f.widest for f in families)
    return keys <= BLOCK_TOKENS and _attention_cost(families) <= PADDING * exact + 50_000


def _attention_cost(families: Sequence[_Family]) -> int:
    """Scores computed where these families are padded to one block; without a path, half are hidden and left out."""
    P, C = max(f.path for f in families), max(f.widest for f in families)
    return sum(len(f.items) for f in families) * (C * (P + C) if P else C * C // 2)


def _segment_begins(tree: PrefixTree, blocks: Sequence[Sequence[_Family]], known: int) -> dict[int, int]:
    """Where each segment begins in the pool: known ones in the tree's order, then those of the packed row."""
    begins, at = dict[int, int](), 0
    for number, s in enumerate(tree.segments):
        if s.known:
            begins[number] = at
            at += s.tokens
    assert at == known
    for item in (item for block in blocks for family in block for item in family.items):
        if item.segment >= 0:
            begins[item.segment] = at
        at += item.length
    return begins


def _block(tree: PrefixTree, families: Sequence[_Family], begins: dict[int, int], device: torch.device) -> Block:
    P, sizes = max(f.path for f in families), {len(f.items) for f in families}
    paths = torch.zeros(len(families), P, dtype=torch.long)
    for path, f in zip(paths, families, strict=True):
        at = f.parent
        while at >= 0:
            s = tree.segments[at]
            path[s.start : s.stop] = torch.arange(begins[at], begins[at] + s.tokens)
            at = s.parent
    counts = torch.tensor([len(f.items) for f in families])
    lengths = torch.tensor([f.path for f in families])
    return Block(
        rows=int(counts.sum()),
        row_width=max(f.widest for f in families),
        paths=len(families),
        path_width=P,
        path_UP=paths.flatten().to(device),
        path_R=torch.arange(len(families)).repeat_interleave(counts).to(device),
        path_length_R=lengths.repeat_interleave(counts).to(device),
        equal=sizes.pop() if len(sizes) == 1 else 0,
        full=all(f.path == P for f in families),
    )


def _padded(start: int, length: int, width: int) -> torch.Tensor:
    """Packed positions of a run of tokens, -1 where it is padded."""
    slots = torch.full((width,), -1)
    slots[:length] = torch.arange(start, start + length)
    return slots


def _places(slot_S: torch.Tensor, tokens: int, device: torch.device) -> dict[str, Any]:
    if len(slot_S) == tokens:
        return {"slot_S": None, "place_T": None, "keep_S": None}
    real = slot_S >= 0
    place = torch.empty(tokens, dtype=torch.long)
    place[slot_S[real]] = torch.arange(len(slot_S))[real]
    return {
        "slot_S": slot_S.clamp(min=0).to(device),
        "place_T": place.to(device),
        "keep_S": real[:, None, None].to(device),
    }


# --- cost ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a forward pass computes: tokens through the body, (query, key) pairs per layer, tokens through the head."""

    tokens: int
    pairs: int
    heads: int


def branch_work(tree: PrefixTree) -> Work:
    """Of the packed layout."""
    pairs = sum(_attention_cost(block) for block in _blocks(_families(tree)))
    return Work(tree.tokens, pairs, sum(sum(g.completions) for g in tree.groups))


def row_work(groups: Sequence[Group], whole_head: bool = True) -> Work:
    """Of one padded row per completion, as TRL lays a batch out; its head computes every position, on CUDA those of
    completions alone (``whole_head=False``).

    A batch without padding needs no mask, and then attention leaves out what causality hides.
    """
    rows = sum(len(g.rows) for g in groups)
    lengths = {(g.prompt, c) for g in groups for c in g.completions}
    width = max(p for p, _ in lengths) + max(c for _, c in lengths)
    heads = rows * width if whole_head else sum(sum(g.completions) for g in groups)
    return Work(rows * width, rows * width * width // (2 if len(lengths) == 1 else 1), heads)
