"""Log-probabilities of many completions with every shared prompt token computed once.

Knows a Hugging Face causal language model and a ``Layout``; knows nothing of rewards, losses or trainers.

Shapes: T packed tokens, H heads, K key-value heads, D head dimension, N completion tokens, E hidden width, V
vocabulary entries; in a block R rows (segments or branches) of C positions and U paths of P.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from colever.optimizers.prefix_layout import Block, Layout

ATTENTION = "colever_branches"
PLAIN_LOGITS = 2**26  # elements of (N, V) up to which logits are kept for the backward pass


# --- attention -----------------------------------------------------------------------------------


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
    branches: Layout,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed row, (1, H or K, T, D) each, as the layout ``branches`` says → (1, T, H, D)."""
    packed = [x[0].transpose(0, 1) for x in (query, key, value)]
    own = packed
    if branches.slot_S is not None:
        own = [_Gather.apply(x, branches.slot_S, branches.place_T, None) for x in packed]
    outputs: list[torch.Tensor] = []
    at = 0
    for block in branches.blocks:
        outputs.append(_block_attention(block, [x[at : at + block.slots] for x in own], packed[1:], scaling))
        at += block.slots
    out = torch.cat(outputs)
    if branches.slot_S is not None:
        out = _Gather.apply(out, branches.place_T, branches.slot_S, branches.keep_S)
    return out[None], None


def _block_attention(
    block: Block, own: Sequence[torch.Tensor], packed: Sequence[torch.Tensor], scaling: float | None
) -> torch.Tensor:
    """(slots, H, D) of a block's rows, from their own queries, keys and values and the packed keys and values."""
    query, *keys = (x.unflatten(0, (block.rows, block.row_width)).transpose(1, 2) for x in own)
    if not block.path_width:
        out = _sdpa(query, keys[0], keys[1], scaling, causal=True)
    else:
        above = [_path(block, x) for x in packed]
        keys = [torch.cat(pair, 2) for pair in zip(above, keys, strict=True)]
        out = _sdpa(query, keys[0], keys[1], scaling, mask=block.mask(query.dtype))
    return out.transpose(1, 2).flatten(0, 1)


def _path(block: Block, packed: torch.Tensor) -> torch.Tensor:
    """(T, K, D) → (R, K, P, D): what each row's path holds; every path is gathered once."""
    above = packed.index_select(0, block.path_UP).unflatten(0, (block.paths, block.path_width)).transpose(1, 2)
    if block.equal:
        return above[:, None].expand(-1, block.equal, -1, -1, -1).flatten(0, 1)
    return above.index_select(0, block.path_R)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and query.device.type != "cpu":  # CUDA's fused kernels take no mask with grouped heads
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
    """Whether the model's attention can be exchanged and sees everything before it (no sliding window, no experts)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and kinds == {"full_attention"}
        and not hasattr(config, "output_router_logits")
    )


# --- log-probabilities ---------------------------------------------------------------------------


def add_branches(model: Any, temperature: float) -> None:
    """Let ``model(branches=layout)`` return (log-probabilities (N,), entropies (N,)) of the layout's labels.

    Goes through the model's own ``forward``, so that PEFT and data-parallel wrappers around it stay in the path.
    ``del model.forward`` undoes it.
    """
    plain = model.forward

    def forward(self: Any, *args: Any, branches: Layout | None = None, **kwargs: Any) -> Any:
        if branches is None:
            return plain(*args, **kwargs)
        with branch_attention_in(self):
            hidden = self.base_model(
                input_ids=branches.input_ids_T[None],
                position_ids=branches.positions_T[None],
                use_cache=False,
                branches=branches,
            ).last_hidden_state[0]
        return token_logprobs(self, hidden.index_select(0, branches.branch_N), branches.label_N, temperature)

    model.forward = types.MethodType(forward, model)


def token_logprobs(
    model: Any, hidden_NE: torch.Tensor, label_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label and entropy (no gradient) under ``softmax(logits / temperature)``."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    special = any(getattr(config, name, None) is not None for name in _LOGIT_CHANGES)
    if not special and len(label_N) * head.weight.shape[0] <= PLAIN_LOGITS:
        logits = head(hidden_NE).float()
        logprob_NV = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
        with torch.no_grad():
            entropy_N = -(logprob_NV.exp() * logprob_NV).sum(-1)
        return logprob_NV.gather(1, label_N[:, None])[:, 0], entropy_N
    from trl.kernels import ChunkedLogProbFunction

    cap = getattr(config, "final_logit_softcapping", None)
    logprob_N, entropy_N, *_ = ChunkedLogProbFunction.apply(
        hidden_NE,
        head.weight,
        head.bias,
        label_N,
        temperature,
        32768,
        cap,
        _logit_scale(config),
        ("log_probs", "entropy"),
    )
    return logprob_N, entropy_N.detach()


_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def _logit_scale(config: Any) -> float:
    """As TRL reads it from the configuration."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)
