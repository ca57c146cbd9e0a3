"""Supervised training of the engine's own model on chat messages, through TRL's SFTTrainer.

Knows messages, tokens and weights; nothing of programs, metrics or DSPy's jobs. The prompt of a row is rendered exactly
as the engine renders it when it answers, and the loss is on the last message alone, the assistant's, with the token
that ends it: demos, which hold assistant messages too, are context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.engines.generation import ModelShape
from colever.engines.prefix_store import causal
from colever.errors import LeverError, UsageError
from colever.optimizers.trainable import save_weights, trainable
from colever.optimizers.trainer_loop import own_dtype
from colever.types import Cost

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.dspy_settings import FinetuneSettings
    from colever.types import Weights

IGNORED = -100  # the label of tokens without loss
Messages = Sequence[Mapping[str, str]]


def finetune(
    engine: TransformersEngine, parent: Weights, chats: Sequence[Messages], settings: FinetuneSettings, folder: Path
) -> tuple[Weights, list[float]]:
    """New weights in ``folder/weights``, from ``parent``, and the loss of every update; the engine's meter counts it.

    Raises UsageError for rows that cannot be trained on, LeverError for a loss that is not finite.
    """
    rows = [chat_row(engine, i, chat) for i, chat in enumerate(chats)]
    if not rows:
        raise UsageError("train_data is empty: no example is left to train on; a metric that accepts none drops all")
    how = settings.weights()
    with trainable(engine, parent, how, settings.seed) as model:
        losses = _train(model, engine, rows, settings, folder / "training")
        weights = save_weights(model, engine, parent, how, folder / "weights")
    return weights, losses


def completion_ids(engine: TransformersEngine, text: str) -> tuple[int, ...]:
    """The tokens of an assistant's message, with the one that ends it."""
    return (*engine.tokenizer(text, add_special_tokens=False)["input_ids"], engine.tokenizer.eos_token_id)


def chat_row(engine: TransformersEngine, place: int, chat: Messages) -> dict[str, list[int]]:
    """Token ids and labels of one conversation. Raises UsageError naming the row."""
    if not chat or chat[-1].get("role") != "assistant":
        raise UsageError(f"train_data row {place}: the last message must be the assistant's, which is what is learned")
    prompt = engine.render(chat[:-1])
    answer = completion_ids(engine, chat[-1]["content"])
    if len(prompt) + len(answer) > engine.context:
        raise UsageError(
            f"train_data row {place}: {len(prompt)} + {len(answer)} tokens; the model takes {engine.context}"
        )
    return {
        "input_ids": [*prompt, *answer],
        "attention_mask": [1] * (len(prompt) + len(answer)),
        "labels": [IGNORED] * len(prompt) + list(answer),
    }


def row_cost(shape: ModelShape, inputs: Mapping[str, Any], backward: float) -> Cost:
    """Forward and backward over padded rows, (rows, length) in ``input_ids``; ``backward`` in forward passes."""
    rows, length = inputs["input_ids"].shape
    forward = shape.flops(rows * length, rows * causal(length), rows * length)
    return Cost(trained_tokens=int((inputs["labels"] != IGNORED).sum()), flops=forward * (1.0 + backward))


def _train(
    model: Any, engine: TransformersEngine, rows: Sequence[Mapping[str, Any]], s: FinetuneSettings, folder: Path
) -> list[float]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    shape = ModelShape.of(engine.model)
    backward = 2.0 if s.peft == "none" else 1.0  # under an adapter there are no gradients of the weights below it

    class Trainer(SFTTrainer):
        def _send_telemetry(self) -> None:
            """None."""

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            engine.book(row_cost(shape, inputs, backward))
            return super().training_step(model, inputs, *args, **kwargs)

    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=s.num_train_epochs,
        per_device_train_batch_size=s.per_device_train_batch_size,
        learning_rate=s.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=s.warmup,
        max_grad_norm=s.max_grad_norm,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # tokens and labels are made above
        gradient_checkpointing=False,
        bf16=False,  # the model's own dtype
        use_cpu=engine.device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=s.seed % 2**32,
    )
    with own_dtype(model):
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=engine.tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        engine.model.zero_grad(set_to_none=True)
        engine.model.eval()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        raise LeverError(f"the loss is not finite; try a lower learning_rate (now {s.learning_rate:g})")
    return losses
