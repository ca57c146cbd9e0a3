"""The trainer of a model that is shared out among processes: what differs from one that every process holds.

Knows ``ProgramTrainer`` and ``Shards``. A pass exchanges parameters and gradients layer by layer, so that

- all processes make the same number of passes: who has fewer parts makes up for it with a row that counts nothing;
- gradients come added up, and the norm that they are clipped by is over the shares of all;
- a process that fails in a pass cannot tell the others, which wait for it inside theirs: it ends, and so do they;
- rows are sampled by the engine's own model, made whole for it, and checkpoints are written from it: they are those of
  one process, and any number goes on from them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from colever.engines.adapters import PredictorAdapters
from colever.optimizers.grpo import Metrics, ProgramTrainer
from colever.optimizers.grpo_settings import GrpoSettings
from colever.optimizers.processes import Team
from colever.optimizers.sharding import Shards
from colever.optimizers.trajectories import Row, TrainingBatch


class ShardedTrainer(ProgramTrainer):
    """Trains the twin of ``shards``; the other arguments are ``ProgramTrainer``'s, ``adapters`` those of the engine."""

    def __init__(
        self, shards: Shards, tokenizer: Any, settings: GrpoSettings, folder: Any, sample: Any, after_update: Any,
        remember: Any, touched: Any, adapters: PredictorAdapters | None = None,
    ) -> None:  # fmt: skip
        self._shards = shards
        self._optimizer_state: dict[str, Any] = {}
        own = None if adapters is None else PredictorAdapters(shards.twin, adapters.names)
        super().__init__(shards.twin, tokenizer, settings, folder, sample, after_update, remember, touched, own)
        self.is_distributed_loading_by_transformers = True  # to transformers: placed and reduced already
        if self.ref_model is not None:
            shards.share_out(self.ref_model)

    def _sampled(self, update: int) -> TrainingBatch | None:
        with self._shards.whole():
            return super()._sampled(update)

    def _trained(self, model: Any, batch: TrainingBatch, team: Team) -> list[Metrics]:
        return team.gather(self._train_parts(model, batch, team))

    def _own_parts(self, rows: Sequence[Row], team: Team) -> list[tuple[list[Row], float]]:
        """As many as any other has, and at each place of the same predictor, if each has an adapter of its own."""
        own: list[tuple[list[Row], float]] = []
        made = self._all_parts(rows, team)
        for _, group in groupby(made, lambda part: part[0].predictor if self.adapters is not None else ""):
            parts = list(group)
            shortest = min((row for part in parts for row in part), key=lambda r: len(r.prompt_ids))
            even = [(part, 1.0) for part in parts] + [([shortest], 0.0)] * (-len(parts) % team.size)
            own += team.share(even)
        return own

    def _has_mixed_mesh_grads(self, model: Any) -> bool:
        """What makes transformers take the norm over all shares, where there are gradients."""
        return any(p.grad is not None for p in model.parameters())

    @property
    def _schedule(self) -> Any:
        return self.lr_scheduler

    # --- checkpoints -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._optimizer_state = self._shards.gathered(self.optimizer)
        with self._shards.whole():
            super()._save_checkpoint(model, trial)
        self._optimizer_state = {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            self._shards.plain.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            torch.save(self._optimizer_state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self._schedule.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._shards.whole():
            super()._load_from_checkpoint(resume_from_checkpoint, self._shards.plain)
            self._shards.take()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(os.path.join(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True, mmap=True)
        optimizer: Any = self.optimizer
        optimizer.load_state_dict(self._shards.parted(state, optimizer))
        self._schedule.load_state_dict(torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True))
