"""TRL's GRPO trainer on our batches: its losses, optimizer, schedule, checkpoints and loop, our rollouts and layout.

Knows rows of token ids with advantages; knows nothing of tasks, programs or budgets. What it overrides of TRL 1.16:

- ``training_step``: an update's rows come from a callback (TRL wants one row per requested generation), and are
  split into parts of at most ``max_tokens`` computed tokens whose losses add up to the loss of the whole;
- ``_get_per_token_logps_and_entropies``: log-probabilities with every shared prompt token computed once, where that is
  less work than TRL's padded rows;
- ``_compute_loss``: TRL's, without its collective calls, with its per-token advantages weighed by importance ratios
  where sampler and trainer may differ; the greatest difference between the two's log-probabilities is noted, or the
  mean one where the sampler read other prompts and is meant to differ;
- data loader, learning-rate schedule (a warm-up does not begin at 0), checkpoint folder, model card, telemetry.

An update without rows changes nothing: no gradient, no optimizer state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.utils import use_adapter

from colever.engines.adapters import PredictorAdapters
from colever.engines.base_model import steady_attention
from colever.engines.branches import supports_branches
from colever.engines.generation import ModelShape
from colever.engines.memory import naming_memory
from colever.engines.prefix_layout import branch_work, build_layout, row_work
from colever.engines.prefix_tree import prefix_tree
from colever.errors import LeverError
from colever.optimizers import shared_prefix
from colever.optimizers.checkpoint import seal_checkpoint
from colever.optimizers.grpo_settings import GrpoSettings
from colever.optimizers.importance import tapered_ratio, truncated_ratio
from colever.optimizers.loss_inputs import loss_inputs
from colever.optimizers.processes import OneProcess, Team
from colever.optimizers.trainer_loop import Enough, LoopTrainer, Touched, joined, own_dtype, quiet
from colever.optimizers.trajectories import Row, TrainingBatch, parts
from colever.optimizers.writing import writing

PER_ROW = frozenset({"grpo", "dr_grpo"})  # losses that divide by the number of rows
PER_TOKEN = frozenset({"bnpo"})  # by the number of completion tokens of the part at hand
TRL_METRICS = {"kl": "kl", "clip_ratio/region_mean": "clip_fraction", "cispo_clip_ratio": "clip_fraction"}

Sampler = Callable[[int], TrainingBatch | None]  # update index → rows from the weights as they are; None: enough
Metrics = dict[str, float]


class ProgramTrainer(LoopTrainer):
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
        self.computed_tokens = 0  # forward passes with gradients, padding included
        self._sample, self._after_update, self._remember = sample, after_update, remember
        self._inputs: dict[str, Any] = {}  # of the loss that is being computed
        self._logps: torch.Tensor | None = None
        self._entropies: torch.Tensor | None = None
        self._notes: Metrics = {}
        with Team.current().told():
            arguments = settings.arguments(folder, next(model.parameters()).device)
        if hasattr(model, "peft_config"):
            arguments.beta = 0.0  # no copy of the adapter: the reference is the base model, all adapters off
        with own_dtype(model), Team.current().told():
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
        self._branches = (
            settings.share_prefixes
            and supports_branches(self._base)
            and not hasattr(self._base.config.get_text_config(), "output_router_logits")
        )
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
        batch = self._sampled(self.state.global_step)
        if batch is None:
            raise Enough
        sampled = time.monotonic()
        model.train()
        self._step += 1
        team = Team.current()
        notes = joined(self._trained(model, batch, team))
        loss = notes.pop("loss")
        self.flops += notes.pop("flops")
        self.trained_tokens += sum(len(r.completion_ids) for r in batch.rows)
        self._check_finite(loss, "loss")
        seconds = max(team.gather(time.monotonic() - sampled))  # the same in all: a cap on seconds ends all of them
        self._notes = notes | {"seconds/rollouts": sampled - started, "seconds/update": seconds}
        return torch.tensor(loss, device=self.accelerator.device)

    def _sampled(self, update: int) -> TrainingBatch | None:
        return self._sample(update)

    def _trained(self, model: Any, batch: TrainingBatch, team: Team) -> list[Metrics]:
        """What each process noted of its parts; all have the gradients of the whole."""
        notes = team.together(lambda: self._train_parts(model, batch, team))
        if batch.rows:
            team.sum_gradients(model.parameters())
        return notes

    def _train_parts(self, model: Any, batch: TrainingBatch, team: Team) -> Metrics:
        """Forward and backward over this process's parts; their shares of the update's loss, FLOPs and metrics.

        Without the wrapper and the collective calls of data-parallel training: processes may have different numbers
        of parts, or none.
        """
        gap = "fold_gap" if self.settings.folded else "logprob_gap"
        self._notes = {"loss": 0.0, "flops": 0.0, "entropy": 0.0, gap: 0.0}
        accelerator: Any = self.accelerator
        self.accelerator = OneProcess(accelerator)
        try:
            with naming_memory(self._out_of_memory), steady_attention():
                for part, counts in self._own_parts(batch.rows, team):
                    self._train_part(accelerator.unwrap_model(model), part, batch, counts)
        finally:
            self.accelerator = accelerator
        return self._notes

    def _own_parts(self, rows: Sequence[Row], team: Team) -> list[tuple[list[Row], float]]:
        """This process's parts, and that each counts in full."""
        return [(part, 1.0) for part in team.share(self._all_parts(rows, team))]

    def _all_parts(self, rows: Sequence[Row], team: Team) -> list[list[Row]]:
        """Smaller ones where there would be fewer parts than processes."""
        limit = self.settings.part_tokens(self.accelerator.device)
        how = {"padded": not self._branches, "apart": self.adapters is not None}
        made = list(parts(rows, limit, **how))
        while 0 < len(made) < min(team.size, len(rows)) and limit > 1:
            limit //= 2
            made = list(parts(rows, limit, **how))
        return made

    def _train_part(self, model: Any, rows: Sequence[Row], batch: TrainingBatch, counts: float) -> None:
        inputs = loss_inputs(rows, batch.total_tokens, self.pad_token_id, self.accelerator.device)
        if self.beta != 0.0:
            inputs["ref_per_token_logps"] = self._reference(inputs)
        self._switch(rows)  # after the reference, behind which PEFT leaves this adapter alone trainable
        count = sum(len(r.completion_ids) for r in rows)
        share = 1.0  # of a loss that divides by ``num_items_in_batch``
        if self.loss_type in PER_ROW:
            share = len(rows) / batch.total_rows
        elif self.loss_type in PER_TOKEN:
            share = count / batch.total_tokens
        loss = self.compute_loss(model, inputs) * share * counts
        self.accelerator.backward(loss)
        self._notes["loss"] += float(loss.detach())
        self._note(inputs, counts * count / sum(len(r.completion_ids) for r in batch.rows))

    def _note(self, inputs: Mapping[str, torch.Tensor], share: float) -> None:
        """Add a part's means over tokens; ``share`` is the part's of the update's trained tokens."""
        mask = inputs["completion_mask"]
        assert self._entropies is not None
        means = {"entropy": float((self._entropies * mask).sum() / mask.sum().clamp(min=1))}
        if "ratio" in inputs:
            means["importance_ratio"] = float((inputs["ratio"] * mask).sum() / mask.sum().clamp(min=1))
        if (self.settings.folded or self.settings.correct) and self._logps is not None:
            apart = (inputs["sampled"] - self._logps) * mask
            name, apart = ("fold_gap", apart) if self.settings.folded else ("logprob_gap_mean", apart.abs())
            means[name] = float(apart.sum() / mask.sum().clamp(min=1))
        seen = self._metrics["train"]
        means |= {new: seen[old][-1] for old, new in TRL_METRICS.items() if seen.get(old)}
        seen.clear()
        for name, mean in means.items():
            self._notes[name] = self._notes.get(name, 0.0) + mean * share

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
        if "sampled" in inputs and self._logps is not None and not self.settings.folded:
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
        shared, padded = branch_work(tree), row_work(tree.groups, input_ids.device.type != "cuda")
        flops = [self._shape.flops(w.tokens, w.pairs, w.heads) for w in (shared, padded)]
        # padded rows may need fewer FLOPs and still more memory than the part was cut for
        fits = padded.tokens <= max(shared.tokens, self.settings.part_tokens(self.accelerator.device))
        branches = self._branches and (flops[0] <= flops[1] or not fits)
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
            self.computed_tokens += (shared if branches else padded).tokens
            self._logps = logps.detach()
            self._entropies = None if entropies is None else entropies.detach()
            if self.settings.correct or self.settings.taper:
                self._correct(self._inputs)
        return logps, entropies, aux

    def _correct(self, inputs: dict[str, Any]) -> None:
        """Weigh the advantages, which TRL reads after its log-probabilities: (B,) → (B, C).

        Every loss is linear in a factor that is not negative, so this is TRL's product of loss and ratio, whose own
        branch asks for a vLLM server; the KL penalty stays out of it in both.
        """
        assert self._logps is not None
        how = self._logps, inputs["sampled"], inputs["completion_mask"]
        inputs["ratio"] = truncated_ratio(*how) if self.settings.correct else tapered_ratio(*how, inputs["advantages"])
        inputs["advantages"] = inputs["advantages"][:, None] * inputs["ratio"]

    def _count(self, forward: float) -> None:
        """A forward pass, and behind one with gradients a backward pass: twice that, once under LoRA."""
        backward = (1.0 if self._base is not self.model else 2.0) if torch.is_grad_enabled() else 0.0
        self._notes["flops"] = self._notes.get("flops", 0.0) + forward * (1.0 + backward)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self._check_finite(float(norm), "gradient's norm")
        return norm

    # --- what others read ---------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" not in logs:
            return  # the summary at the end
        metrics: Metrics = {k: float(logs[k]) for k in ("loss", "grad_norm", "learning_rate") if k in logs}
        self._after_update(self.state.global_step - 1, metrics | self._notes)

    # --- checkpoints -----------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.adapters is not None:  # the optimizer, made next, takes what is trainable: one adapter as it is now
            self.adapters.activate(next(iter(self.adapters.names)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """By all processes, each of which has a random state; the seal comes last."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        what, team, memory = f"the checkpoint after {self.state.global_step} updates", Team.current(), self._remember()
        save = super()._save_checkpoint

        def write() -> None:
            self._check_weights()
            with writing(what, folder):
                save(model, trial)

        def seal() -> None:
            with writing(what, folder):
                seal_checkpoint(folder, memory)

        team.together(write)
        team.by_main(seal)

    def run(self, checkpoint: Path | None) -> None:
        """Train to the last update or until there is no batch, from ``checkpoint`` if there is one."""
        with quiet(), suppress(Enough), naming_memory(self._out_of_memory):
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        Team.current().together(self._check_weights)


def _no_reward(*args: Any, **kwargs: Any) -> list[float | None]:
    raise LeverError("rewards come with the rows")
