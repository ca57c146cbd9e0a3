"""What ``grpo_update.py`` compares: the rows that are trained on, and one update of each of the two layouts.

Knows Colever's trainer, TRL's and models of random weights; knows nothing of clocks or memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapes
import torch

GROUPS, GROUP_SIZE = 8, 8


@dataclass(frozen=True)
class Model:
    """Which model is trained, and where."""

    shape: str = "1m"
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def vocabulary(self) -> int:
        return shapes.SHAPES[self.shape]["vocab_size"]

    def make(self) -> Any:
        return shapes.random_model(self.shape, self.dtype, self.device)


# --- what is trained on --------------------------------------------------------------------------


def random_rows(prompt: int, completion: int, vocabulary: int) -> list[Any]:
    source = random.Random(0)
    rows = []
    for group in range(GROUPS):
        head = [source.randrange(4, vocabulary) for _ in range(prompt)]
        for sample in range(GROUP_SIZE):
            tail = [source.randrange(4, vocabulary) for _ in range(completion)]
            rows.append(row(group, sample, head, tail, source.gauss(0, 1)))
    return rows


def task_rows(name: str) -> list[Any]:
    """Every call of the task's rollouts, in order of length: TRL's batches then pad least."""
    from colever import engine_lm, load_task, run_rollouts

    task = load_task(name)
    rollouts = run_rollouts(
        task.program(), task.examples("train")[:GROUPS], lm=engine_lm("seed", device="cpu"), score=task.score,
        fail=task.fail, samples=GROUP_SIZE, temperature=1.0, max_tokens=task.max_tokens,
    )  # fmt: skip
    source = random.Random(0)
    rows = [
        row(r.example_id, r.sample, s.completion.prompt_ids, s.completion.completion_ids, source.gauss(0, 1))
        for r in rollouts
        for s in r.steps
    ]
    return sorted(rows, key=lambda row: (len(row.prompt_ids), row.prompt_ids, len(row.completion_ids)))


def row(group: Any, sample: int, prompt: Any, completion: Any, advantage: float) -> Any:
    from colever.optimizers.trajectories import Row

    zeros = (0.0,) * len(completion)
    return Row((str(group), "p", 0), sample, tuple(prompt), tuple(completion), zeros, 0.0, advantage, 1.0)


def _batch(rows: list[Any]) -> Any:
    from colever.optimizers.trajectories import TrainingBatch

    tokens = sum(len(r.completion_ids) for r in rows)
    return TrainingBatch(tuple(rows), len(rows), tokens, GROUPS, 0, len(rows), 0, 0, 0.5, {}, {})


# --- the peers -----------------------------------------------------------------------------------


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def colever(model: Model, rows: list[Any], size: int, folder: Path) -> tuple[Any, Callable[[], None]]:
    from colever.optimizers.grpo import ProgramTrainer
    from colever.optimizers.grpo_settings import GrpoSettings

    settings = GrpoSettings(
        updates=1, learning_rate=1e-5, warmup=0, schedule="constant", temperature=1.0, beta=0.0, loss="dapo",
        max_grad_norm=1.0, max_completion=256, max_tokens=size, save_every=10**6, seed=0,
    )  # fmt: skip
    batch = _batch(rows)
    trainer = ProgramTrainer(
        model.make(), _tokenizer(), settings, folder, lambda update: batch, lambda update, metrics: None
    )
    return trainer, _update(trainer, lambda: trainer.training_step(trainer.model, {}))


def trl(model: Model, rows: list[Any], size: int, folder: Path) -> tuple[Any, Callable[[], None]]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=256, bf16=False,
        report_to="none", use_cpu=model.device == "cpu", gradient_checkpointing=False, learning_rate=1e-5,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model.make(), reward_funcs=lambda **kw: [0.0], args=arguments, processing_class=_tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": [""] * 2}),
    )  # fmt: skip
    tokens = torch.tensor(float(sum(len(r.completion_ids) for r in rows)), device=model.device)
    inputs = [
        {**padded(rows[i : i + size], model.device), "num_items_in_batch": tokens} for i in range(0, len(rows), size)
    ]

    def step() -> None:
        trainer.model.train()
        for part in inputs:
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))

    return trainer, _update(trainer, step)


def padded(rows: list[Any], device: str) -> dict[str, Any]:
    left, right = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)
    heads = [(r.prompt_ids, left - len(r.prompt_ids)) for r in rows]
    tails = [(r.completion_ids, right - len(r.completion_ids)) for r in rows]
    columns = {
        "prompt_ids": [[0] * gap + list(ids) for ids, gap in heads],
        "prompt_mask": [[0] * gap + [1] * len(ids) for ids, gap in heads],
        "completion_ids": [list(ids) + [0] * gap for ids, gap in tails],
        "completion_mask": [[1] * len(ids) + [0] * gap for ids, gap in tails],
        "advantages": [r.advantage for r in rows],
    }
    return {name: torch.tensor(column, device=device) for name, column in columns.items()}


def _update(trainer: Any, step: Callable[[], Any]) -> Callable[[], None]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()

    def run() -> None:
        step()
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return run


BUILD = {"trl": trl, "colever": colever}
