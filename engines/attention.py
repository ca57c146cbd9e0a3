"""Keys and values that many rows share, and the attention function that reads them.

Knows transformers' cache and attention interfaces, nothing of prompts or sampling. Shapes: B rows, H key-value
heads, R query heads per key-value head, C common positions, T own positions, D head width.

A cache has a common part (1, H, C, D), which all rows attend to and none copies, and an own part (B, H, T, D) in
a buffer that is allocated once. One decoding step attends to both and joins them under one softmax.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "colever_shared_prefix"
_active = threading.local()  # .common: of the layer whose cache was updated last, for the attention right after


class SharedLayer(CacheLayerMixin):
    """One layer's common and own part."""

    def __init__(self, owner: SharedCache) -> None:
        super().__init__()
        self.owner = owner
        self.keys: Any = None
        self.values: Any = None
        self.common: tuple[torch.Tensor, torch.Tensor] | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Buffers are made by ``update``."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Own keys and values with the new ones appended; in prefill with the common ones in front."""
        if self.keys is None:
            self.keys, self.values = key_states, value_states
            if self.common is None:
                return key_states, value_states
            rows = key_states.shape[0]
            return tuple(  # type: ignore[return-value]
                torch.cat([part.expand(rows, -1, -1, -1), new], 2)
                for part, new in zip(self.common, (key_states, value_states), strict=True)
            )
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
    """The layers of one batch, filled in this order: common part, rows' prompts, ``expand``, decoding steps."""

    def __init__(self, layers: int) -> None:
        self.length = 0  # own positions written
        self.bias: torch.Tensor | None = None  # (B, 1, 1, T): -inf where a row is padded
        self.shared = [SharedLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.shared))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.shared[layer_idx]
        _active.common = layer.common if layer.keys is not None else None  # prefill gets them in front instead
        return layer.update(key_states, value_states)

    def share_prefix(self) -> None:
        """Make what was computed so far (one row) the common part."""
        for layer in self.shared:
            layer.common, layer.keys, layer.values = (layer.keys, layer.values), None, None

    def begin_rows(self, pad_P: torch.Tensor, longest: int) -> None:
        """Say how the next prompts are padded on the left, before they are computed."""
        self.length = longest
        place = torch.arange(longest, device=pad_P.device)
        if bool((pad_P > 0).any()):
            padded = place[None, :] < pad_P[:, None]
            self.bias = torch.zeros(padded.shape, device=pad_P.device).masked_fill_(padded, float("-inf"))[
                :, None, None
            ]

    def prefill_mask(self, pad_P: torch.Tensor, longest: int, dtype: torch.dtype) -> torch.Tensor:
        """(P, 1, T, C + T), additive: causal, padding hidden; a padded query sees itself, lest it is all -inf."""
        place = torch.arange(longest, device=pad_P.device)
        causal = place[None, :] <= place[:, None]
        seen = causal[None] & (place[None, None, :] >= pad_P[:, None, None]) | torch.eye(
            longest, dtype=torch.bool, device=pad_P.device
        )
        common = self.shared[0].common
        if common is not None:
            seen = torch.cat([seen.new_ones(len(pad_P), longest, common[0].shape[2]), seen], 2)
        return torch.zeros(seen.shape, dtype=dtype, device=pad_P.device).masked_fill_(~seen, float("-inf"))[:, None]

    def expand(self, prompt_B: torch.Tensor, room: int) -> None:
        """From one row per prompt to one per request, with ``room`` further positions."""
        self._take(prompt_B, self.length + room)
        if self.bias is not None:
            bias = self.shared[0].keys.new_zeros(len(prompt_B), 1, 1, self.length + room)
            bias[..., : self.length] = self.bias[prompt_B]
            self.bias = bias

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every other row."""
        self._take(rows, self.shared[0].keys.shape[2])
        if self.bias is not None:
            self.bias = self.bias[rows]

    def decode_mask(self) -> torch.Tensor | None:
        """Call before each step: makes room for one position, returns its additive mask (B, 1, 1, T) or None."""
        return None if self.bias is None else self.bias[..., : self.length + 1]

    def advance(self) -> None:
        self.length += 1

    def _take(self, rows: torch.Tensor, size: int) -> None:
        for layer in self.shared:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_empty(len(rows), old.shape[1], size, old.shape[3])
                torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
                setattr(layer, name, new)


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
    common = getattr(_active, "common", None)
    if query.shape[2] > 1 or (key.shape[2] == 1 and common is None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    folded = query.reshape(rows, key.shape[1], -1, width)  # the query heads of a key-value head side by side
    if common is None:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scale)
    else:
        out = _attend_both(folded * scale, common[0][0], common[1][0], key, value, attention_mask)
    return out.reshape(rows, 1, heads, width), None


def _attend_both(
    query: torch.Tensor,  # (B, H, R, D), scaled
    common_key: torch.Tensor,  # (H, C, D)
    common_value: torch.Tensor,
    key: torch.Tensor,  # (B, H, T, D)
    value: torch.Tensor,
    bias: torch.Tensor | None,  # (B, 1, 1, T)
) -> torch.Tensor:
    """One query position per row over common and own keys, one softmax; the common part is one product for all rows."""
    rows, heads, group, width = query.shape
    size = common_key.shape[1]
    by_head = query.transpose(0, 1).reshape(heads, rows * group, width)
    scores = query.new_empty(rows, heads, group, size + key.shape[2])
    scores[..., :size] = torch.bmm(by_head, common_key.transpose(1, 2)).view(heads, rows, group, size).transpose(0, 1)
    own = torch.matmul(query, key.transpose(2, 3))
    scores[..., size:] = own if bias is None else own + bias
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    by_head = weights[..., :size].transpose(0, 1).reshape(heads, rows * group, size)
    out = torch.bmm(by_head, common_value).view(heads, rows, group, width).transpose(0, 1)
    return out + torch.matmul(weights[..., size:], value)


AttentionInterface.register(NAME, _attend)
