"""Keys and values that many rows share, and the attention function of one decoding step that reads them.

Knows transformers' cache and attention interfaces, nothing of prompts or sampling. Shapes: B rows in U groups of
equally many consecutive ones, H key-value heads, R query heads per key-value head, C common positions, T own positions,
D head width.

A cache has a common part (U, H, C, D), which all rows of a group attend to and none copies, and an own part
(B, H, T, D) in a buffer that is allocated once, padded on the left. One decoding step attends to both and joins them
under one softmax.

Once it is *fixed*, every step has the same shapes and counts on the device (see ``decode_graph``): it attends to the
whole own buffer, masked where nothing is written yet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

NAME = "colever_shared_prefix"
_active = threading.local()  # .common: of the layer whose cache was updated last, for the attention right after


Common = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # keys, values, (U, 1, 1, C): -inf where padded


class SharedLayer(CacheLayerMixin):
    """One layer's common and own part."""

    def __init__(self, owner: SharedCache) -> None:
        super().__init__()
        self.owner = owner
        self.keys: Any = None
        self.values: Any = None
        self.common: Common | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Buffers are made by ``SharedCache``."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Own keys and values with those of one more position."""
        if self.owner.at is not None:
            self.keys.index_copy_(2, self.owner.at, key_states)
            self.values.index_copy_(2, self.owner.at, value_states)
            return self.keys, self.values
        at = self.owner.length
        self.keys[:, :, at : at + 1] = key_states
        self.values[:, :, at : at + 1] = value_states
        return self.keys[:, :, : at + 1], self.values[:, :, : at + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.length + (self.common[0].shape[2] if self.common else 0)

    def get_max_length(self) -> int:
        return -1


class SharedCache(Cache):
    """The layers of one batch: prompts out of a store of keys and values, (tokens, H, D) per layer, and ``room`` more.

    ``common_UC`` are the places of the tokens that the rows of a group begin with, ``own_BT`` those of each row's
    others, padded on the left as ``pad_U`` and ``pad_B`` say.
    """

    def __init__(
        self,
        store: Sequence[tuple[torch.Tensor, torch.Tensor]],
        common_UC: torch.Tensor,
        pad_U: torch.Tensor,
        own_BT: torch.Tensor,
        pad_B: torch.Tensor,
        room: int,
    ) -> None:
        self.length = own_BT.shape[1]  # own positions written; no longer kept once fixed
        self.at: torch.Tensor | None = None  # (1,): the same on the device, once fixed
        self.bias: torch.Tensor | None = None  # (B, 1, 1, T): -inf where a row is padded
        self.groups = len(common_UC)
        common_bias = _padding(pad_U, common_UC.shape[1], store[0][0])
        self.shared = [SharedLayer(self) for _ in store]
        super().__init__(layers=list(self.shared))
        for layer, (keys, values) in zip(self.shared, store, strict=True):
            if common_UC.numel():
                common = [x[common_UC].transpose(1, 2).contiguous() for x in (keys, values)]
                layer.common = (common[0], common[1], common_bias)
            layer.keys, layer.values = (_rows(x, own_BT, room) for x in (keys, values))
        self.bias = _padding(pad_B, self.length + room, store[0][0])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.shared[layer_idx]
        _active.common = layer.common
        return layer.update(key_states, value_states)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every other row; only where all are one group."""
        assert self.groups == 1
        for layer in self.shared:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_empty(len(rows), *old.shape[1:])
                written = old.shape[2] if self.at is not None else self.length
                torch.index_select(old[:, :, :written], 0, rows, out=new[:, :, :written])
                setattr(layer, name, new)
        if self.bias is not None:
            self.bias = self.bias[rows]

    def fix(self) -> None:
        """From now on every step has the same shapes."""
        keys = self.shared[0].keys
        if self.bias is None:
            self.bias = keys.new_zeros(keys.shape[0], 1, 1, keys.shape[2])
        self.bias[..., self.length :] = float("-inf")
        for layer in self.shared:  # what is masked is multiplied by 0, which a NaN would survive
            layer.keys[:, :, self.length :] = 0
            layer.values[:, :, self.length :] = 0
        self.at = torch.tensor([self.length], device=keys.device)

    def decode_mask(self) -> torch.Tensor | None:
        """Call before each step: its additive mask (B, 1, 1, T), or None."""
        if self.at is not None:
            assert self.bias is not None
            return self.bias.index_fill_(3, self.at, 0.0)
        return None if self.bias is None else self.bias[..., : self.length + 1]

    def advance(self) -> None:
        if self.at is None:
            self.length += 1
        else:
            self.at += 1


def _padding(pad_B: torch.Tensor, width: int, like: torch.Tensor) -> torch.Tensor | None:
    """(B, 1, 1, width) with -inf at the first ``pad_B`` positions; None where there are none."""
    if not bool((pad_B > 0).any()):
        return None
    padded = torch.arange(width, device=pad_B.device)[None, :] < pad_B[:, None]
    return like.new_zeros(padded.shape).masked_fill_(padded, float("-inf"))[:, None, None]


def _rows(tokens: torch.Tensor, place_BT: torch.Tensor, room: int) -> torch.Tensor:
    """(tokens, H, D) → (B, H, T + room, D), the last positions left as they come."""
    rows, length = place_BT.shape
    _, heads, width = tokens.shape
    out = tokens.new_empty(rows, heads, length + room, width)
    out[:, :, :length] = tokens.index_select(0, place_BT.flatten()).view(rows, length, heads, width).transpose(1, 2)
    return out


@contextmanager
def decoding_attention(model: Any) -> Iterator[None]:
    """Let the model's attention layers read a ``SharedCache``; what was set before is restored."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    common = _active.common
    rows, heads, _, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    folded = query.reshape(rows, key.shape[1], -1, width)  # the query heads of a key-value head side by side
    if common is None:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scale)
    else:
        out = _attend_both(folded * scale, common, key, value, attention_mask)
    return out.reshape(rows, 1, heads, width), None


def _attend_both(
    query: torch.Tensor,  # (B, H, R, D), scaled
    common: Common,
    key: torch.Tensor,  # (B, H, T, D)
    value: torch.Tensor,
    bias: torch.Tensor | None,  # (B, 1, 1, T)
) -> torch.Tensor:
    """One query position per row over common and own keys, one softmax; the common part is one product for a group."""
    rows, heads, shared, width = query.shape
    common_key, common_value, common_bias = common
    groups, size = common_key.shape[0], common_key.shape[2]
    common_key, common_value = (x.flatten(0, 1) for x in (common_key, common_value))
    apart = (groups, rows // groups, heads, shared)  # U, rows of a group, H, R
    together = (groups * heads, -1)

    scores = query.new_empty(rows, heads, shared, size + key.shape[2])
    by_head = query.view(*apart, width).transpose(1, 2).reshape(*together, width)
    seen = torch.bmm(by_head, common_key.transpose(1, 2)).view(groups, heads, -1, shared, size).transpose(1, 2)
    if common_bias is not None:
        seen = seen + common_bias[:, :, None]
    scores[..., :size].unflatten(0, apart[:2]).copy_(seen)
    own = torch.matmul(query, key.transpose(2, 3))
    scores[..., size:] = own if bias is None else own + bias
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    by_head = weights[..., :size].unflatten(0, apart[:2]).transpose(1, 2).reshape(*together, size)
    out = torch.bmm(by_head, common_value).view(groups, heads, -1, shared, width).transpose(1, 2)
    return out.reshape(query.shape) + torch.matmul(weights[..., size:], value)


AttentionInterface.register(NAME, _attend)
