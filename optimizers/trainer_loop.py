"""What surrounds TRL's loop: its summaries off, and a word whenever the weights changed. Knows transformers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging as hf_logging


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
        parameter.data = data


class Touched(TrainerCallback):
    """Says that the weights changed: after every update, and when a checkpoint was read."""

    def __init__(self, touched: Callable[[], None]) -> None:
        self.touched = touched

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.touched()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.touched()
