"""TRL's GRPO trainer on our batches: its losses, optimizer, schedule, checkpoints and loop, our rollouts and layout.

Knows rows of token ids with advantages; knows nothing of tasks, programs or budgets. What it overrides of TRL 1.16:

- ``training_step``: an update's rows come from a callback (TRL wants one row per requested generation), and are
  split into parts of at most ``max_tokens`` computed tokens whose losses add up to the loss of the whole;
- ``_get_per_token_logps_and_entropies``: log-probabilities with every shared prompt token computed once, where that is
  less work than TRL's padded rows;
- ``_compute_loss``: TRL's, with its per-token advantages weighed by importance ratios where sampler and trainer may
  differ; the greatest difference between its log-probabilities and the sampler's is noted;
- data loader, learning-rate schedule (a warm-up does not begin at 0), checkpoint folder, model card, telemetry.

An update without rows changes nothing: no gradient, no optimizer state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from colever.engines.adapters import PredictorAdapters
from colever.engines.generation import ModelShape
from colever.errors import LeverError
from colever.optimizers import shared_prefix
from colever.optimizers.checkpoint import seal_checkpoint
from colever.optimizers.grpo_settings import GrpoSettings, rate
from colever.optimizers.importance import truncated_ratio
from colever.optimizers.prefix_layout import branch_work, build_layout, row_work
from colever.optimizers.prefix_tree import prefix_tree
from colever.optimizers.processes import Team
from colever.optimizers.row_tensors import row_tensors
from colever.optimizers.trainer_loop import Touched, own_dtype, quiet
from colever.optimizers.trajectories import Row, TrainingBatch, parts

PER_ROW = frozenset({"grpo", "dr_grpo"})  # losses that divide by the number of rows
PER_TOKEN = frozenset({"bnpo"})  # by the number of completion tokens of the part at hand

Sampler = Callable[[int], TrainingBatch | None]  # update index → rows from the weights as they are; None: enough
Metrics = dict[str, float]


class ProgramTrainer(GRPOTrainer):
    """Trains ``model`` in place. ``sample`` gives an update's rows, ``after_update`` hears of every update's metrics.

    ``adapters``: where every predictor has an adapter of its own, ``model`` with them; a row trains its predictor's
    alone, all are in one optimizer, and one without rows in an update is not stepped.
    ``memory`` is any JSON that is kept with each checkpoint: ``remember`` gives it, ``resume`` hands it back.
    Raises LeverError for a loss or gradient that is not finite, before it reaches the weights.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: GrpoSettings,
        folder: Path,
        sample: Sampler,
        after_update: Callable[[int, Metrics], None],
        remember: Callable[[], Mapping[str, Any]] = dict,
        touched: Callable[[], None] = lambda: None,
        adapters: PredictorAdapters | None = None,
    ) -> None:
        self.settings = settings
        self.adapters = adapters
        self.flops = 0.0  # counted, of every update so far in this process
        self.trained_tokens = 0
        self._sample, self._after_update, self._remember = sample, after_update, remember
        self._inputs: dict[str, Any] = {}  # of the loss that is being computed
        self._logps: torch.Tensor | None = None
        self._entropies: torch.Tensor | None = None
        self._notes: Metrics = {}
        arguments = settings.arguments(folder, next(model.parameters()).device)
        if hasattr(model, "peft_config"):
            arguments.beta = 0.0  # no copy of the adapter: the reference is the base model, all adapters off
        with own_dtype(model):
            super().__init__(
                model=model,
                reward_funcs=_no_reward,
                args=arguments,
                train_dataset=Dataset.from_dict({"prompt": [""] * settings.updates}),
                processing_class=tokenizer,
                callbacks=[Touched(touched)],
            )
        self.beta = settings.beta
        self.processing_class = None  # no copy of it in every checkpoint
        self.remove_callback(PrinterCallback)
        policy: Any = self.model
        self._base: Any = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self._shape = ModelShape.of(self._base)
        self._branches = settings.share_prefixes and shared_prefix.supports_branches(self._base)
        if self._branches:
            for part in (self._base, self.ref_model):
                if part is not None:
                    shared_prefix.add_branches(part, settings.temperature)

    def _switch(self, rows: Sequence[Row]) -> None:
        """The adapter of these rows' predictor on; nothing where all predictors share the weights."""
        if self.adapters is not None:
            self.adapters.activate(rows[0].predictor)

    def release(self) -> None:
        """Give the model back as it came: TRL's and our ``forward`` are taken off."""
        self._base.__dict__.pop("forward", None)
        self._base.zero_grad(set_to_none=True)
        self._base.eval()

    # --- one update ------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Sample an update's rows, then forward and backward over its parts; the loss of the whole."""
        started = time.monotonic()
        batch = self._sample(self.state.global_step)
        if batch is None:
            raise _Enough
        sampled = time.monotonic()
        model.train()
        self._step += 1
        loss = torch.zeros((), device=self.accelerator.device)
        self._notes = {"entropy": 0.0, "logprob_gap": 0.0}
        if self.settings.correct:
            self._notes["importance_ratio"] = 0.0
        tokens = sum(len(r.completion_ids) for r in batch.rows)
        team, flops = Team.current(), self.flops
        with self.accelerator.no_sync(model):
            for part in self._own_parts(batch.rows, team):
                loss += self._train_part(model, part, batch, tokens)
        self._join(team, model, flops)
        self._check_finite(float(loss), "loss")
        self.trained_tokens += tokens
        ended = time.monotonic()
        self._notes.update({"seconds/rollouts": sampled - started, "seconds/update": ended - sampled})
        return loss

    def _own_parts(self, rows: Sequence[Row], team: Team) -> list[list[Row]]:
        """This process's parts, equally many in each, since TRL gathers metrics in every loss.

        Where there are too few, a row whose advantage and weight are 0 stands in.
        """
        limit, apart = self.settings.max_tokens, self.adapters is not None
        made = list(parts(rows, limit, apart))
        while 0 < len(made) < min(team.size, len(rows)) and limit > 1:
            limit //= 2
            made = list(parts(rows, limit, apart))
        own = team.share(made)
        stand_in = [[replace(row, advantage=0.0, weight=0.0)] for row in rows[:1]]
        return own + stand_in * (math.ceil(len(made) / team.size) - len(own))

    def _join(self, team: Team, model: Any, flops: float) -> None:
        """The gradient, the notes and the FLOPs of all processes."""
        if team.size == 1:
            return
        team.average_gradients(model.parameters())
        gathered = team.gather({**self._notes, "flops": self.flops - flops})
        self.flops = flops + sum(notes["flops"] for notes in gathered)
        for name in self._notes:
            join = max if name == "logprob_gap" else sum
            self._notes[name] = join(notes[name] for notes in gathered)

    def _train_part(self, model: Any, rows: Sequence[Row], batch: TrainingBatch, tokens: int) -> torch.Tensor:
        trained = any(r.weight for r in rows)
        inputs = row_tensors(rows, self.pad_token_id, batch.total_tokens, self.accelerator.device)
        if self.beta != 0.0:
            inputs["ref_per_token_logps"] = self._reference(inputs)
        self._switch(rows)  # after the reference, behind which PEFT leaves this adapter alone trainable
        count = sum(len(r.completion_ids) for r in rows)
        share = 1.0  # of a loss that divides by ``num_items_in_batch``, the whole batch's per process
        if self.loss_type in PER_ROW:
            share = len(rows) / batch.total_rows * self.accelerator.num_processes
        elif self.loss_type in PER_TOKEN:
            share = count / batch.total_tokens * self.accelerator.num_processes
        share = share if trained else 0.0
        loss = self.compute_loss(model, inputs) * share
        self.accelerator.backward(loss)
        assert self._entropies is not None
        if not trained:
            return loss.detach()
        mean = float((self._entropies * inputs["completion_mask"]).sum()) / max(count, 1)
        self._notes["entropy"] += mean * count / tokens
        if "ratio" in inputs:
            self._notes["importance_ratio"] += float((inputs["ratio"] * inputs["completion_mask"]).sum()) / tokens
        return loss.detach()

    @torch.no_grad()
    def _reference(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities under the base model: TRL's copy for full weights, the adapter switched off for LoRA."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].shape[1]
        if self.ref_model is not None:
            return self._get_per_token_logps_and_entropies(self.ref_model, ids, mask, width)[0]
        with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
            return self._get_per_token_logps_and_entropies(self.model, ids, mask, width)[0]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._inputs = inputs
        loss = super()._compute_loss(model, inputs)
        if "sampled" in inputs and self._logps is not None:
            gap = ((self._logps - inputs["sampled"]).abs() * inputs["completion_mask"]).max()
            self._notes["logprob_gap"] = max(self._notes.get("logprob_gap", 0.0), float(gap))
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        tree = prefix_tree(input_ids, attention_mask, logits_to_keep)
        shared, padded = branch_work(tree), row_work(tree.groups)
        flops = [self._shape.flops(w.tokens, w.pairs, w.heads) for w in (shared, padded)]
        branches = self._branches and flops[0] <= flops[1]
        self._count(flops[0 if branches else 1])
        if not branches:
            logps, entropies, aux = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        else:
            layout = build_layout(input_ids, attention_mask, logits_to_keep, tree)
            with self.accelerator.autocast():
                logp_N, entropy_N = model(branches=layout)
            size = (input_ids.shape[0], logits_to_keep)
            logps, entropies = (
                torch.zeros(size[0] * size[1], dtype=x.dtype, device=x.device).scatter(0, layout.target_N, x).view(size)
                for x in (logp_N, entropy_N)
            )
            aux = None
        if torch.is_grad_enabled():
            self._logps = logps.detach()
            self._entropies = None if entropies is None else entropies.detach()
            if self.settings.correct:
                self._correct(self._inputs)
        return logps, entropies, aux

    def _correct(self, inputs: dict[str, Any]) -> None:
        """Weigh the advantages, which TRL reads after its log-probabilities: (B,) → (B, C).

        Every loss is linear in a factor that is not negative, so this is TRL's product of loss and ratio, whose own
        branch asks for a vLLM server; the KL penalty stays out of it in both.
        """
        assert self._logps is not None
        inputs["ratio"] = truncated_ratio(self._logps, inputs["sampled"], inputs["completion_mask"])
        inputs["advantages"] = inputs["advantages"][:, None] * inputs["ratio"]

    def _count(self, forward: float) -> None:
        """A forward pass, and behind one with gradients a backward pass: twice that, once under LoRA."""
        backward = (1.0 if self._base is not self.model else 2.0) if torch.is_grad_enabled() else 0.0
        self.flops += forward * (1.0 + backward)

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise LeverError(
                f"update {self.state.global_step}: the {what} is {value}; the update was not applied. Try a lower "
                f"learning_rate (now {self.settings.learning_rate:g}) or max_grad_norm (now "
                f"{self.settings.max_grad_norm:g})"
            )

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self._check_finite(float(norm), "gradient's norm")
        return norm

    # --- Trainer's surroundings ------------------------------------------------------------------

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

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" not in logs:
            return  # the summary at the end
        names = {"kl": "kl", "clip_ratio/region_mean": "clip_fraction", "cispo_clip_ratio": "clip_fraction"}
        metrics: Metrics = {k: float(logs[k]) for k in ("loss", "grad_norm", "learning_rate") if k in logs}
        metrics |= {new: float(logs[old]) for old, new in names.items() if logs.get(old) is not None}
        self._after_update(self.state.global_step - 1, metrics | self._notes)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted in ``flops``

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is for this machine alone."""

    def _send_telemetry(self) -> None:
        """None."""

    # --- checkpoints -----------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.adapters is not None:  # the optimizer, made next, takes what is trainable: one adapter as it is now
            self.adapters.activate(next(iter(self.adapters.names)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            team, memory = Team.current(), self._remember()
            team.gather(None)  # every process's random state is written
            team.by_main(lambda: seal_checkpoint(folder, memory))
        except OSError as error:
            raise LeverError(f"the checkpoint of update {self.state.global_step} cannot be written: {error}") from error

    def run(self, checkpoint: Path | None) -> None:
        """Train to the last update or until there is no batch, from ``checkpoint`` if there is one."""
        with quiet(), suppress(_Enough):
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


class _Enough(Exception):
    """Ends TRL's loop before an update."""


def _no_reward(*args: Any, **kwargs: Any) -> list[float | None]:
    raise LeverError("rewards come with the rows")
