"""Importance ratios where the sampler's probabilities are not the trainer's. Knows tensors of log-probabilities only.

A sampler in another process, or in a dtype whose rounding differs between a cached step and a whole pass, draws from
μ while the trainer differentiates π. Each token's part of the gradient is then multiplied by min(π / μ, ``CAP``), as
truncated importance sampling does (Ionides 2008, doi:10.1198/106186008X320456) and TRL in ``token_truncate``.

Departure from an unbiased correction, which also multiplies the ratios of every earlier token of the trajectory: their
product has a variance that grows with length. What a token's own ratio leaves is that its context was drawn from μ.

Where prompts are folded into weights μ has other prompts and is meant to differ. Then only what is to become *less*
likely is weighed, by min(π / μ, 1), token by token: the tapered ratio of Le Roux et al. (arXiv:2503.14286, TOPR), who
take it of whole completions.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

CAP = 3.0  # TRL's default


class Sampler(Protocol):
    """What is asked of an engine."""

    dtype: str
    trains_in_place: bool  # the model that samples is the one that is trained


def corrects(how: Literal["auto", "on", "off"], engine: Sampler) -> bool:
    """Whether ratios are applied; ``auto``: unless sampler and trainer are one model in float32, equal to 1e-5."""
    if how == "auto":
        return not (engine.trains_in_place and engine.dtype == "float32")
    return how == "on"


def truncated_ratio(trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """min(exp(trainer − sampler), ``CAP``) of log-probabilities (B, C), without gradient; 1 where ``mask`` is 0."""
    return ((trainer.detach() - sampler) * mask).exp().clamp(max=CAP)


def tapered_ratio(
    trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """min(exp(trainer − sampler), 1) in rows (B, C) whose advantage (B,) is negative, 1 elsewhere; no gradient."""
    ratio = ((trainer.detach() - sampler) * mask).exp().clamp(max=1.0)
    return torch.where(advantages[:, None] < 0, ratio, torch.ones_like(ratio))
