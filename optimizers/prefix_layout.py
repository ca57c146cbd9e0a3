"""Where the tokens of a batch lie so that every distinct prompt is computed once, and what that saves.

Knows token tensors; knows nothing of models, rewards or losses.

A *trunk* is a distinct prompt without its last token. A *branch* is one row's last prompt token followed by its
completion without its last token, so a branch has one position per completion token, and each position predicts
exactly one. Trunks and branches lie in one packed row without padding (embeddings, norms, projections and MLPs see no
padded token); attention alone gathers them into *blocks* of similar lengths, where a trunk attends to itself and a
branch to its trunk and itself. Positions restart at the trunk's end in every branch.

Shapes: T packed tokens, B rows of a batch, P prompt positions, C completion positions, N completion tokens; in a block
R branches and U trunks; S attention slots of all blocks, padding included.

Departure from "one row with a block-diagonal mask": a dense mask over a prompt and its G completions costs
(P + G·C)² attention and loses where completions are long; here attention costs P² / 2 + G·C·(P + C).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

PADDING = 1.25  # a block takes in a trunk or branch as long as padded attention costs at most this factor


@dataclass(frozen=True)
class Block:
    """A padded part of the attention: U trunks of at most P positions, R branches of at most C."""

    trunks: int
    trunk_width: int
    rows: int
    row_width: int
    parent_R: torch.Tensor  # the trunk of each branch
    trunk_length_R: torch.Tensor  # of that trunk
    equal: int  # branches per trunk where they are equal in number and in order, else 0
    full: bool  # every trunk of the block is as wide as the block
    masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)

    @property
    def trunk_slots(self) -> int:
        return self.trunks * self.trunk_width

    @property
    def slots(self) -> int:
        return self.trunk_slots + self.rows * self.row_width

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """(R or 1, 1, C, P + C), additive: own trunk without its padding, then own branch causally."""
        if dtype not in self.masks:
            device, C, P = self.parent_R.device, self.row_width, self.trunk_width
            own = torch.ones(C, C, dtype=torch.bool, device=device).tril()
            lengths = self.trunk_length_R[:1] if self.full else self.trunk_length_R
            above = torch.arange(P, device=device)[None, :] < lengths[:, None]
            seen = torch.cat([above[:, None, :].expand(-1, C, -1), own.expand(len(lengths), -1, -1)], -1)
            self.masks[dtype] = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(
                ~seen, torch.finfo(dtype).min
            )[:, None]
        return self.masks[dtype]


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
    target_N: torch.Tensor  # where its log-probability goes in the flattened (B, C)

    @property
    def tokens(self) -> int:
        return self.input_ids_T.numel()


@dataclass(frozen=True)
class Group:
    """Rows that share one prompt: indices of the rows, the prompt's length, each completion's length."""

    rows: tuple[int, ...]
    prompt: int
    completions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt - 1 + sum(self.completions)

    @property
    def widest(self) -> int:
        return max(self.completions)


def group_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int) -> list[Group]:
    """Rows of (B, P + C) left-padded prompts and right-padded completions, grouped by equal prompts."""
    split = input_ids.shape[1] - completion_width
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
    lengths = mask[:, :split].sum(1), mask[:, split:].sum(1)
    rows: dict[bytes, list[int]] = {}
    for row, length in enumerate(lengths[0]):
        rows.setdefault(ids[row, split - length : split].tobytes(), []).append(row)
    return [
        Group(tuple(members), int(lengths[0][members[0]]), tuple(int(lengths[1][m]) for m in members))
        for members in rows.values()
    ]


def build_layout(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int, groups: Sequence[Group] | None = None
) -> Layout:
    """The layout of a batch as TRL pads it: prompts left, completions right. Every row has a prompt token."""
    groups = group_rows(input_ids, attention_mask, completion_width) if groups is None else groups
    kept = [_without_empty(g) for g in groups if any(g.completions)]
    split, device = input_ids.shape[1] - completion_width, input_ids.device
    packed, positions, labels, targets, branch, slots, blocks = [], [], [], [], [], [], []
    at = 0
    for block in _blocks(kept):
        P, C = max(g.prompt - 1 for g in block), max(g.widest for g in block)
        parents, above = [], []
        for number, g in enumerate(block):
            packed.append(torch.arange(split - g.prompt, split - 1) + g.rows[0] * input_ids.shape[1])
            positions.append(torch.arange(g.prompt - 1))
            slots.append(_padded(at, g.prompt - 1, P))
            at += g.prompt - 1
            parents += [number] * len(g.rows)
            above += [g.prompt - 1] * len(g.rows)
        for g in block:
            for row, length in zip(g.rows, g.completions, strict=True):
                start = split - 1 + row * input_ids.shape[1]
                packed.append(torch.arange(start, start + length))
                labels.append(torch.arange(start + 1, start + 1 + length))
                targets.append(torch.arange(length) + row * completion_width)
                positions.append(torch.arange(g.prompt - 1, g.prompt - 1 + length))
                branch.append(torch.arange(at, at + length))
                slots.append(_padded(at, length, C))
                at += length
        blocks.append(_block(block, P, C, parents, above, device))
    flat = input_ids.reshape(-1)
    slot_S = torch.cat(slots)
    return Layout(
        input_ids_T=flat[torch.cat(packed).to(device)],
        positions_T=torch.cat(positions).to(device),
        blocks=tuple(blocks),
        **_places(slot_S, at, device),
        branch_N=torch.cat(branch).to(device),
        label_N=flat[torch.cat(labels).to(device)],
        target_N=torch.cat(targets).to(device),
    )


def _without_empty(group: Group) -> Group:
    if all(group.completions):
        return group
    some = [(r, c) for r, c in zip(group.rows, group.completions, strict=True) if c]
    return Group(tuple(r for r, _ in some), group.prompt, tuple(c for _, c in some))


def _padded(start: int, length: int, width: int) -> torch.Tensor:
    """Packed positions of a run of tokens, -1 where it is padded."""
    slots = torch.full((width,), -1)
    slots[:length] = torch.arange(start, start + length)
    return slots


def _places(slot_S: torch.Tensor, tokens: int, device: torch.device) -> dict[str, torch.Tensor | None]:
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


def _block(groups: list[Group], P: int, C: int, parents: list[int], above: list[int], device: torch.device) -> Block:
    sizes = {len(g.rows) for g in groups}
    return Block(
        trunks=len(groups),
        trunk_width=P,
        rows=len(parents),
        row_width=C,
        parent_R=torch.tensor(parents, device=device),
        trunk_length_R=torch.tensor(above, device=device),
        equal=sizes.pop() if len(sizes) == 1 else 0,
        full=all(g.prompt - 1 == P for g in groups),
    )


def _blocks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups of similar lengths together, as long as padding adds at most ``PADDING`` to attention's cost."""
    block: list[Group] = []
    exact = 0
    for g in sorted(groups, key=lambda g: (g.prompt, g.widest)):
        own = _attention_cost([g], g.prompt - 1, g.widest)
        both = [*block, g]
        padded = _attention_cost(both, g.prompt - 1, max(x.widest for x in both))
        if block and padded > PADDING * (exact + own) + 50_000:
            yield block
            block, exact = [], 0
        block.append(g)
        exact += own
    if block:
        yield block


def _attention_cost(groups: Sequence[Group], P: int, C: int) -> int:
    """Scores computed where these groups are padded to P trunk and C branch positions."""
    return sum(P * P // 2 + len(g.rows) * C * (P + C) for g in groups)


# --- cost ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a forward pass computes: tokens through the body, (query, key) pairs per layer, tokens through the head."""

    tokens: int
    pairs: int
    heads: int


def branch_work(groups: Sequence[Group]) -> Work:
    """Of the packed layout."""
    pairs = sum(_attention_cost(b, max(g.prompt - 1 for g in b), max(g.widest for g in b)) for b in _blocks(groups))
    return Work(sum(g.tokens for g in groups), pairs, sum(sum(g.completions) for g in groups))


def row_work(groups: Sequence[Group]) -> Work:
    """Of one padded row per completion, as TRL lays a batch out; off CUDA its head computes every position.

    A batch without padding needs no mask, and then attention leaves out what causality hides.
    """
    rows = sum(len(g.rows) for g in groups)
    lengths = {(g.prompt, c) for g in groups for c in g.completions}
    width = max(p for p, _ in lengths) + max(c for _, c in lengths)
    return Work(rows * width, rows * width * width // (2 if len(lengths) == 1 else 1), rows * width)
