"""Log-probabilities of many completions with every shared prompt token computed once.

Knows a Hugging Face causal language model and a ``Layout``; knows nothing of rewards, losses or trainers.

Shapes: N completion tokens, E hidden width, V vocabulary entries.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from colever.engines.branches import branch_attention_in
from colever.engines.prefix_layout import Layout

PLAIN_LOGITS = 2**26  # elements of (N, V) up to which logits are kept for the backward pass


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
                layout=branches,
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
