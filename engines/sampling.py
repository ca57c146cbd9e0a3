"""From logits to token ids: temperature, top-k, top-p, and one uniform per token from a counter-based generator.

Knows nothing of models or batches: a row's sample depends on its own logits and its own uniform, so a
completion does not change with who else is in the batch. Shapes: B rows, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """How each of B rows is decoded (tensors of shape (B,)); ``all_greedy`` and so on say what a batch needs at all."""

    temperature: torch.Tensor  # 1.0 where the row is greedy
    greedy: torch.Tensor
    top_k: torch.Tensor  # V where the row has none
    top_p: torch.Tensor  # 1.0 where the row has none
    all_greedy: bool
    any_greedy: bool
    truncated: bool
    tempered: bool  # a row has a temperature other than 0 and 1

    @classmethod
    def of(
        cls,
        temperatures: Sequence[float],
        top_ks: Sequence[int | None],
        top_ps: Sequence[float | None],
        device: torch.device,
    ) -> Sampling:
        greedy = [t <= 0.0 for t in temperatures]
        return cls(
            torch.tensor([1.0 if g else t for g, t in zip(greedy, temperatures, strict=True)], device=device),
            torch.tensor(greedy, device=device),
            torch.tensor([k or 2**31 for k in top_ks], device=device),
            torch.tensor([1.0 if p is None else p for p in top_ps], device=device),
            all(greedy),
            any(greedy),
            any(k is not None for k in top_ks) or any(p is not None and p < 1.0 for p in top_ps),
            any(t not in (0.0, 1.0) for t in temperatures),
        )

    def select(self, rows: torch.Tensor) -> Sampling:
        """The same for the given rows only."""
        return Sampling(
            self.temperature[rows],
            self.greedy[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.all_greedy,
            self.any_greedy,
            self.truncated,
            self.tempered,
        )


def uniforms(seed: int, count: int) -> np.ndarray:
    """``count`` uniforms in [0, 1) that depend on ``seed`` and their place alone (Philox)."""
    return np.random.Generator(np.random.Philox(key=seed & (2**64 - 1))).random(count)


def sample(logits_BV: torch.Tensor, uniform_B: torch.Tensor, how: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B,) and their log-probabilities (B,).

    A log-probability is ``log_softmax(logits / T)`` at the id (T = 1 for a greedy row), before top-k and top-p:
    the quantity that a trainer recomputes from the same tokens.
    """
    logits = logits_BV.float()
    if how.tempered:
        logits = logits / how.temperature[:, None]
    if how.all_greedy:
        ids = logits.argmax(-1)
    else:
        ids = _inverse_cdf(_truncate(logits, how) if how.truncated else logits, uniform_B)
        if how.any_greedy:
            ids = torch.where(how.greedy, logits.argmax(-1), ids)
    chosen = logits.gather(1, ids[:, None])[:, 0]
    return ids, chosen - logits.logsumexp(-1)


def _inverse_cdf(logits: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    mass = (logits - logits.amax(-1, keepdim=True)).exp_()
    cdf = mass.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    ids = torch.searchsorted(cdf, uniform_B[:, None].to(cdf.dtype) * total, right=True)[:, 0]
    return ids.clamp_(max=logits.shape[-1] - 1)


def _truncate(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """Logits with everything outside each row's top-k and nucleus at -inf; the best id always stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)[None, :]
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    drop = (rank >= how.top_k[:, None]) | (before >= how.top_p[:, None])
    drop[:, 0] = False
    return torch.full_like(logits, float("-inf")).scatter(1, order, ordered.masked_fill(drop, float("-inf")))
