"""Attention over a packed row of segments and branches, as a ``Layout`` says.

Knows tensors and transformers' interfaces; knows nothing of tokens, sampling or losses.

Shapes: T packed tokens, K known ones before them in the pool of keys and values, H heads, KV key-value heads, D head
dimension; in a block R rows (segments or branches) of C positions and U paths of P.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

from colever.engines.prefix_layout import Block, Layout

ATTENTION = "colever_branches"
LONG_PATHS = 4  # a block whose gathered paths are longer than so many of its rows computes them again going back


class _Gather(torch.autograd.Function):
    """``x[there]`` whose gradient is a gather as well: every row of ``x`` is read once, save by padded slots."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: torch.Tensor, back: torch.Tensor, keep: Any) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.keep = keep
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        out = grad.index_select(0, back)
        return (out if ctx.keep is None else out * ctx.keep), None, None, None


def branch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row, (1, H, T, D), over the pool, (1, KV, K + T, D) → (1, T, H, D)."""
    query, *pool = (x[0].transpose(0, 1) for x in (query, key, value))
    own = [query, *(x[layout.known :] for x in pool)]
    if layout.slot_S is not None:
        own = [_Gather.apply(x, layout.slot_S, layout.place_T, None) for x in own]
    outputs: list[torch.Tensor] = []
    at = 0
    for block in layout.blocks:
        rows = [x[at : at + block.slots] for x in own]
        if torch.is_grad_enabled() and block.paths * block.path_width > LONG_PATHS * block.slots:
            how: Any = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in it is random
            outputs.append(checkpoint(_block_attention, block, rows, pool, scaling, **how))
        else:
            outputs.append(_block_attention(block, rows, pool, scaling))
        at += block.slots
    out = torch.cat(outputs)
    if layout.slot_S is not None:
        out = _Gather.apply(out, layout.place_T, layout.slot_S, layout.keep_S)
    return out[None], None


def _block_attention(
    block: Block, own: Sequence[torch.Tensor], pool: Sequence[torch.Tensor], scaling: float | None
) -> torch.Tensor:
    """(slots, H, D) of a block's rows, from their own queries, keys and values and the pool's keys and values."""
    query, *keys = (x.unflatten(0, (block.rows, block.row_width)).transpose(1, 2) for x in own)
    if not block.path_width:
        out = _sdpa(query, keys[0], keys[1], scaling, causal=True)
    else:
        above = [_path(block, x) for x in pool]
        keys = [torch.cat(pair, 2) for pair in zip(above, keys, strict=True)]
        out = _sdpa(query, keys[0], keys[1], scaling, mask=_mask(block, query))
    return out.transpose(1, 2).flatten(0, 1)


def _path(block: Block, pool: torch.Tensor) -> torch.Tensor:
    """(K + T, KV, D) → (R, KV, P, D): what each row's path holds; every path is gathered once."""
    above = pool.index_select(0, block.path_UP).unflatten(0, (block.paths, block.path_width)).transpose(1, 2)
    if block.equal:
        return above[:, None].expand(-1, block.equal, -1, -1, -1).flatten(0, 1)
    return above.index_select(0, block.path_R)


def _mask(block: Block, query: torch.Tensor) -> torch.Tensor:
    """What each row may see. Where all paths are equally long it is plain causality, for which a GPU has kernels."""
    if block.full and query.device.type != "cpu" and query.dtype != torch.float32:
        return causal_lower_right(block.row_width, block.path_width + block.row_width)
    return block.mask(query.dtype)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    shared = query.shape[1] // key.shape[1]
    half = query.dtype != torch.float32
    if shared > 1 and query.device.type != "cpu" and not (half and mask is None):
        # CUDA's fused kernels take no mask with grouped heads, and none of them in float32
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        shared = 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=shared > 1
    )


@contextmanager
def branch_attention_in(model: Any) -> Iterator[None]:
    """Within, the model's attention is ``branch_attention``; its own comes back afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, branch_attention)
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation_internal = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def supports_branches(model: Any) -> bool:
    """Whether the model's attention can be exchanged and sees everything before it (no sliding window)."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds == {"full_attention"}
