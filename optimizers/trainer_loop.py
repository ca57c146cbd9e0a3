"""What surrounds TRL's loop: its summaries off, a word when the weights changed, what an update's numbers come to.

Knows transformers and torch; nothing of rows or rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.utils import logging as hf_logging
from trl import GRPOTrainer

from colever.errors import LeverError
from colever.optimizers.grpo_settings import GrpoSettings, rate
from colever.optimizers.sharding import local


@contextmanager
def quiet() -> Iterator[None]:
    """No bars for the files of a checkpoint, and no summaries of where it goes on."""
    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def own_dtype(model: Any) -> Iterator[None]:
    """Around the making of a trainer: what is trained keeps its dtype and values.

    TRL rounds adapters on a quantized base to bfloat16, in which small steps are lost and sampler and trainer differ.
    """
    kept = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in kept:
        if parameter.dtype != data.dtype:
            parameter.data = data


class Touched(TrainerCallback):
    """Says that the weights changed: after every update, and when a checkpoint was read."""

    def __init__(self, touched: Callable[[], None]) -> None:
        self.touched = touched

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.touched()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.touched()


def joined(notes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One update's numbers from those of its processes: sums of shares, and of gaps the greatest."""
    names = dict.fromkeys(name for own in notes for name in own)
    return {name: (max if name == "logprob_gap" else sum)(own.get(name, 0.0) for own in notes) for name in names}


def not_finite(model: Any) -> str:
    """The first trained parameter that holds a NaN or an infinity; empty if there is none."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return next((name for name, p in trained if not bool(torch.isfinite(local(p)).all())), "")


class LoopTrainer(GRPOTrainer):
    """TRL's trainer without what a sweep does not want, and with updates for items and our learning-rate schedule."""

    settings: GrpoSettings

    @property
    def pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    def get_train_dataloader(self) -> DataLoader:
        """One item per update, its index; the rows come from ``sample``."""
        return DataLoader([{"update": u} for u in range(self.settings.updates)], batch_size=1)  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up whose first update is not 0, then constant, linear or cosine to 0."""
        if self.lr_scheduler is None:
            s = self.settings
            trained: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(trained, lambda u: rate(u, s.updates, s.warmup, s.schedule))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted in ``flops``

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is for this machine alone."""

    def _send_telemetry(self) -> None:
        """None."""

    # --- what ends a pull ------------------------------------------------------------------------

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise LeverError(
                f"update {self.state.global_step}: the {what} is {value}; the update was not applied. Try a lower "
                f"learning_rate (now {self.settings.learning_rate:g}) or max_grad_norm (now "
                f"{self.settings.max_grad_norm:g})"
            )

    def _check_weights(self) -> None:
        if broken := not_finite(self.model):
            raise LeverError(
                f"update {self.state.global_step - 1}: it left {broken} with values that are not finite: they are not "
                f"saved. Try a lower learning_rate (now {self.settings.learning_rate:g})"
            )

    def _out_of_memory(self, said: str) -> LeverError:
        return LeverError(
            f"update {self.state.global_step}: out of memory ({said}). Try a smaller weights.batch_tokens (now "
            f"{self.settings.part_tokens(self.args.device)}), the tokens computed per pass, or weights.peft=lora"
        )


class Enough(Exception):
    """Ends TRL's loop before an update."""
