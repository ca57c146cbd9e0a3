"""Rows of token ids as the tensors that TRL's loss reads. Knows nothing of models, losses or parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from colever.optimizers.trajectories import Row


def row_tensors(rows: Sequence[Row], pad: int, total_tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts padded left, completions right; ``total_tokens``: of the whole batch, a divisor of the loss."""
    prompt = max(len(r.prompt_ids) for r in rows)
    width = max(len(r.completion_ids) for r in rows)
    prompts = [[pad] * (prompt - len(r.prompt_ids)) + list(r.prompt_ids) for r in rows]
    seen = [[0] * (prompt - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in rows]
    return {
        "prompt_ids": torch.tensor(prompts, device=device),
        "prompt_mask": torch.tensor(seen, device=device),
        "completion_ids": _right([r.completion_ids for r in rows], pad, width).to(device),
        "completion_mask": _right([[1] * len(r.completion_ids) for r in rows], 0, width).to(device),
        "advantages": torch.tensor([r.advantage * r.weight for r in rows], device=device),
        "num_items_in_batch": torch.tensor(float(total_tokens), device=device),
        "sampled": _right([r.logprobs for r in rows], 0.0, width).to(device),
    }


def _right(rows: Sequence[Sequence[Any]], pad: Any, width: int) -> torch.Tensor:
    return torch.tensor([list(r) + [pad] * (width - len(r)) for r in rows])
