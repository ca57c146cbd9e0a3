"""What TRL's trainer is told: our few settings, and TRL's configuration made of them. Knows no rows and no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from colever.config import WeightSettings


@dataclass(frozen=True)
class GrpoSettings:
    """What the trainer needs to know; see ``WeightSettings`` for the meaning of most."""

    updates: int
    learning_rate: float
    warmup: int
    schedule: str  # constant | linear | cosine
    temperature: float
    beta: float
    loss: str
    max_grad_norm: float
    max_completion: int  # dr_grpo's divisor
    max_tokens: int  # computed tokens per forward and backward pass; 0: see ``part_tokens``
    save_every: int
    seed: int
    share_prefixes: bool = True
    level: str = "token"  # of importance ratios: token | sequence
    correct: bool = False  # weigh tokens by the trainer's over the sampler's probability
    taper: bool = False  # the same, up to 1, of rows with a negative advantage alone
    folded: bool = False  # the sampler read other prompts than those of the rows: its probabilities are not ours

    def part_tokens(self, device: torch.device) -> int:
        """What a pass may compute: unless told, little on a CPU, where more takes memory and gains no time."""
        return self.max_tokens or (1024 if device.type == "cpu" else 8192)

    def arguments(self, folder: Path, device: torch.device) -> GRPOConfig:
        """TRL's configuration; checkpoints go to ``folder``."""
        return GRPOConfig(
            output_dir=str(folder),
            max_steps=self.updates,
            per_device_train_batch_size=2,  # TRL asks for a whole group; the rows come from ``sample``
            num_generations=2,
            max_completion_length=self.max_completion,
            learning_rate=self.learning_rate,
            max_grad_norm=self.max_grad_norm,
            temperature=self.temperature,
            beta=self.beta,
            loss_type=self.loss,
            importance_sampling_level=self.level,
            **self._bounds(),
            scale_rewards="none",  # advantages come scaled
            disable_dropout=True,
            gradient_checkpointing=False,
            bf16=False,  # the model's own dtype
            use_cpu=device.type == "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=self.save_every,
            save_total_limit=2,  # the newest may be half-written at a kill
            ignore_data_skip=True,  # the data are a function of the update's index
            report_to="none",
            disable_tqdm=True,
            seed=self.seed % 2**32,
        )

    def _bounds(self) -> dict[str, Any]:
        """Of the ratio to the policy that sampled: cispo's is on the ratio itself, a sequence's is much narrower."""
        if self.loss == "cispo":
            return {"epsilon_high": 5.0}  # ScaleRL, arXiv:2510.13786
        if self.level == "sequence":
            return {"epsilon": 3e-4, "epsilon_high": 4e-4}  # GSPO, arXiv:2507.18071, section 5.1
        return {}


def trainer_settings(
    s: WeightSettings, max_tokens: int, seed: int, correct: bool, folded: bool = False
) -> GrpoSettings:
    """What the trainer is told; ``max_tokens``: of a completion. ``correct``: importance ratios are applied, where the
    prompts of sampler and trainer are the same. ``folded``: they are not, and ratios are tapered unless a setting says
    otherwise.
    """
    return GrpoSettings(
        updates=s.updates,
        learning_rate=s.learning_rate,
        warmup=s.warmup,
        schedule=s.learning_rate_schedule,
        temperature=s.temperature,
        beta=s.beta,
        loss=s.loss,
        max_grad_norm=s.max_grad_norm,
        max_completion=max_tokens,
        max_tokens=s.batch_tokens,
        save_every=s.save_every,
        seed=seed,
        level=s.importance_sampling_level,
        correct=s.importance_correction == "on" if folded else correct,
        taper=folded and s.importance_correction == "auto",
        folded=folded,
    )


def rate(update: int, updates: int, warmup: int, schedule: str) -> float:
    """The factor on the learning rate at ``update`` (from 0)."""
    if update < warmup:
        return (update + 1) / (warmup + 1)
    left = (updates - update) / max(1, updates - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[schedule]
