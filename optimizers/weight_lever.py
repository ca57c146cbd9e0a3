"""The weight lever: GRPO on whole programs, on the engine's own model, so that sampler and trainer are one.

Knows candidates, tasks, the engine and the budget; how rows are made is in ``trajectories``, how they are trained on
in ``grpo``. Per update: examples from a shuffled epoch, G rollouts each of the program as it stands (demos included),
one optimizer step. With ``fold`` the completions are trained behind the task's own prompts, which the child has.
Everything random is a function of the seed and the update's index, so a pull that was killed goes on from its last
checkpoint and ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.config import WeightSettings
from colever.engines.calls import stable_seed
from colever.engines.lm import engine_lm
from colever.errors import LeverError, UsageError
from colever.optimizers import curriculum
from colever.optimizers.checkpoint import last_checkpoint
from colever.optimizers.early_stop import EarlyStop, hold_out
from colever.optimizers.evaluate import metered
from colever.optimizers.folding import FOLD_HINT, fold_notes, prompts_to_fold_into, tokens_per_call
from colever.optimizers.lever import Progress, Pull
from colever.optimizers.processes import Team
from colever.optimizers.sharding import Shards, shared_out
from colever.optimizers.trainable import resolved, save_weights, trainable
from colever.optimizers.trajectories import Signal, TrainingBatch, training_batch
from colever.pipelines.prompts import apply_prompts
from colever.pipelines.rollout import run_rollouts
from colever.types import Candidate, Cost, LeverName, PredictorPrompt, Rollout, digest_of

if TYPE_CHECKING:
    import dspy

    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.budget import Budget
    from colever.tasks.task import Task

GAP_ALARM = 1e-4  # |trainer's − sampler's log-probability| of one token in float32
SERVED_ALARM = 0.02  # the same where a server samples
CONSTANT_ALARM = 0.8  # mean share of groups that trained nothing
STUCK = "answers no longer vary"  # what a pull stops with that has learned before
SOLVED = 0.99  # mean reward from which "nothing left to learn" is a success
NO_MATTER = {"batch_tokens", "save_every"}  # settings with which a pull goes on from a checkpoint made under others


class WeightLever:
    """One pull: ``settings.updates`` updates of GRPO. Raises LeverError, BudgetExhausted, and what rollouts raise."""

    name: LeverName = "weights"

    def __init__(self, settings: WeightSettings | None = None, sharding: str = "none") -> None:
        self.settings = settings or WeightSettings()
        self.sharding = sharding

    def planned(self, candidate: Candidate, task: Task) -> int:
        """G rollouts of every example of every update, and the looks at held-out examples."""
        s = self.settings
        looks = 0 if not s.validation else s.validation * (1 + -(-s.updates // s.validate_every))
        return s.updates * s.examples_per_update * s.group_size + looks

    def improve(
        self,
        candidate: Candidate,
        task: Task,
        engine: TransformersEngine,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress,
    ) -> Pull:
        """The candidate with new weights in ``workdir/weights``; checkpoints lie in ``workdir/training``.

        The engine is left with the trained weights, or, where the pull fails, with the candidate's.
        """
        if self.sharding != "none" and engine.quantized:
            raise UsageError("training.sharding=fsdp: the engine's base is quantized; accepted with it: none")
        s = resolved(self.settings, engine.name, engine.adapters_only)
        task = dataclasses.replace(task, gold=None)  # levers see no gold
        early = EarlyStop(workdir / "best", s.patience)
        pull = _Pull(s, task, candidate, engine, budget.slice(), seed, progress, early)
        folder, team = workdir / "training", Team.joined(engine.device.type)
        found = last_checkpoint(folder)
        if found is not None and found[1].get("identity") != pull.identity:
            shutil.rmtree(folder, ignore_errors=True)
            found = None
        team.agree("the last checkpoint", found[0].name if found is not None else None)
        with trainable(engine, candidate.weights, s, seed, pull.predictors) as model:
            pull.model = model
            with shared_out(model, self.sharding) as shards:
                pull.train(shards, folder, found)
            pull.end()
            weights = team.by_main(lambda: save_weights(model, engine, candidate.weights, s, workdir / "weights"))
        child = Candidate(candidate.prompts if pull.short is None else pull.short, weights)
        return Pull(child, pull.curves, pull.notes())


@dataclass
class _Pull:
    """What one pull keeps between its updates."""

    settings: WeightSettings
    task: Task
    candidate: Candidate
    engine: TransformersEngine
    budget: Budget  # its own slice: what this pull spent, work before a kill included
    seed: int
    progress: Progress
    early: EarlyStop
    trainer: Any = None
    model: Any = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    empty: int = 0  # updates in a row without anything to train on
    last: TrainingBatch | None = None
    stopped: str = ""
    spent: dict[str, bool] = field(default_factory=dict)  # examples whose last groups were constant
    charged: tuple[int, float] = (0, 0.0)  # trained tokens and FLOPs of the trainer that the budget knows of

    def __post_init__(self) -> None:
        self.examples, self.held_out = hold_out(self.task.examples("train"), self.settings.validation, self.seed)
        s = self.settings
        self.program = apply_prompts(self.task.program(), self.candidate.prompts)
        self.short = prompts_to_fold_into(self.task, self.candidate) if s.fold else None
        self.judged = self.program if self.short is None else apply_prompts(self.task.program(), self.short)
        self.prompt_tokens: dict[str, float] = {}
        self.lm = engine_lm(self.engine, temperature=s.temperature, max_tokens=self.task.max_tokens)
        asked = s.model_dump(mode="json", exclude=NO_MATTER)
        self.identity = digest_of([self.candidate.digest, asked, self.seed])

    @property
    def predictors(self) -> list[str]:
        return [name for name, _ in self.program.named_predictors()]

    def train(self, shards: Shards | None, folder: Path, found: tuple[Path, dict[str, Any]] | None) -> None:
        """All updates, from the checkpoint that was found."""
        from colever.optimizers.grpo import ProgramTrainer
        from colever.optimizers.grpo_settings import trainer_settings
        from colever.optimizers.importance import corrects
        from colever.optimizers.sharded_trainer import ShardedTrainer

        engine, s = self.engine, self.settings
        correct = corrects(s.importance_correction, engine)
        how = trainer_settings(s, self.task.max_tokens, self.seed, correct, self.short is not None)
        told = (self.sample, self.after_update, self.remember, engine.touched, engine.adapters)
        if shards is None:
            self.trainer = ProgramTrainer(self.model, engine.tokenizer, how, folder, *told)
        else:
            self.trainer = ShardedTrainer(shards, engine.tokenizer, how, folder, *told)
        try:
            if found is not None:
                self.recall(found[1])
            self.trainer.run(found[0] if found is not None else None)
        finally:
            self.trainer.release()
            self.trainer = None

    def sample(self, update: int) -> TrainingBatch | None:
        """The rows of an update, from rollouts under the weights as they are; None if nothing is left to learn."""
        s = self.settings
        if self.held_out and update % s.validate_every == 0 and not self.stopped:
            self._look(update)
        if self.stopped:
            return None
        if s.curriculum:
            examples = curriculum.by_signal(self.examples, s.examples_per_update, self.seed, update, self.spent)
        else:
            examples = curriculum.in_turn(self.examples, s.examples_per_update, self.seed, update)
        seed = stable_seed(self.seed, "update", update)
        rollouts = self._roll(self.program, examples, s.group_size, s.temperature, seed, self.short)
        self.prompt_tokens = tokens_per_call(rollouts) if self.short is not None else {}
        best: Signal = "best" if self.short is None else "imitate"
        try:
            self.last = training_batch(
                rollouts,
                version=self.engine.version,
                grouping=s.grouping,
                scaling=s.scale_rewards,
                weighted=s.step_weights,
                signal=best if s.way == "rejection" else "advantage",
                prompts="sampled" if self.short is None else "short",
            )
        except LeverError as error:
            raise LeverError(f"update {update}: {error}") from error
        curriculum.remember(self.spent, (name for name, _ in examples), (row.group[0] for row in self.last.rows))
        self._check_signal(update, self.last)
        self.engine.rest()
        return self.last

    def _roll(
        self,
        program: dspy.Module,
        examples: Sequence[tuple[str, dspy.Example]],
        samples: int,
        temperature: float,
        seed: int,
        short: Mapping[str, PredictorPrompt] | None = None,
    ) -> list[Rollout]:
        """Rollouts of all processes, example by example, and their cost on the ledger of each."""
        self.budget.reserve(rollouts=len(examples) * samples)
        team = Team.current()
        share = team.share(examples)

        def work() -> tuple[list[Rollout], Cost]:
            with metered(self.engine, len(share) * samples, self.budget, later=True) as meter:
                rollouts = run_rollouts(
                    program,
                    share,
                    lm=self.lm,
                    score=self.task.score,
                    fail=self.task.fail,
                    samples=samples,
                    temperature=temperature,
                    max_tokens=self.task.max_tokens,
                    seed=seed,
                    split="train",
                    short=short,
                )
            return rollouts, meter.cost

        done = team.together(work)
        cost = sum((c for _, c in done), Cost())
        self.budget.charge(dataclasses.replace(cost, seconds=max(c.seconds for _, c in done)))
        place = {name: i for i, (name, _) in enumerate(examples)}
        return sorted((r for rollouts, _ in done for r in rollouts), key=lambda r: (place[r.example_id], r.sample))

    def _look(self, update: int) -> None:
        """Score the held-out examples as an evaluation of the child would, under the weights as they are."""
        seed = stable_seed(self.seed, "validation")
        rollouts = self._roll(self.judged, self.held_out, 1, self.task.temperature, seed)
        scores = [r.score.total for r in rollouts if r.score is not None]
        if self.early.look(update, sum(scores) / max(1, len(scores)), self.model):
            self.stopped = (
                f"no better score on {len(self.held_out)} held-out examples since update {self.early.best_update}"
            )

    def end(self) -> None:
        """After the last update: a last look, and the best weights back."""
        if not self.held_out:
            return
        done = len(self.curves.get("reward", []))
        if not self.stopped:
            self._look(done)
        self.early.restore(self.model)
        self.engine.touched()

    def _check_signal(self, update: int, batch: TrainingBatch) -> None:
        self.empty = 0 if batch.rows else self.empty + 1
        if self.empty < self.settings.empty_updates:
            return
        which = f"updates {update - self.empty + 1} to {update}"
        if batch.reward >= SOLVED and not self._never_folded():
            self.stopped = f"nothing left to learn: {which} were solved throughout"
            return
        if self._has_trained:
            self.stopped = (
                f"{STUCK}: all groups of {which} were constant (mean reward {batch.reward:.3f}); a lower learning "
                "rate, weights.beta above 0 or a larger group_size keeps answers apart for longer"
            )
            return
        raise LeverError(
            f"weights: all groups of the last {self.empty} updates were constant (mean reward {batch.reward:.3f}), so "
            f"nothing can be learned. Raise temperature (now {self.settings.temperature:g}) or group_size (now "
            f"{self.settings.group_size}), give the rubric partial credit, or pull the prompt lever first"
            + (FOLD_HINT if self.short is not None else "")
        )

    def _never_folded(self) -> bool:
        """Whether this pull folds and has trained nothing so far: its child would have lost the prompts for nothing."""
        return self.short is not None and not self._has_trained

    @property
    def _has_trained(self) -> bool:
        return any(rows for _, rows in self.curves.get("trained_rows", []))

    def after_update(self, update: int, metrics: dict[str, float]) -> None:
        """Book an update: its curves, what training it cost, and how far the pull has come."""
        batch = self.last
        assert batch is not None
        values = {
            "reward": batch.reward,
            **{f"criterion/{name}": value for name, value in batch.by_criterion.items()},
            **{f"completion_tokens/{name}": value for name, value in batch.completion_tokens.items()},
            "constant_share": batch.constant_share,
            "policy_failures": batch.policy_failures / max(1, batch.rollouts),
            "trained_rows": float(len(batch.rows)),
            **({"drifted_calls": float(batch.drifted_calls)} if batch.drifted_calls else {}),
            **self.prompt_tokens,
            **metrics,
        }
        values["seconds"] = metrics["seconds/rollouts"] + metrics["seconds/update"]
        for name, value in values.items():
            self.curves.setdefault(name, []).append((update, float(value)))
        tokens, flops = self.trainer.trained_tokens, self.trainer.flops
        trained = Cost(trained_tokens=tokens - self.charged[0], flops=flops - self.charged[1])
        self.engine.book(trained)
        self.budget.charge(dataclasses.replace(trained, seconds=metrics["seconds/update"]))
        self.charged = (tokens, flops)
        self.progress.update(update + 1, self.settings.updates, f"weights: reward {batch.reward:.3f}")

    def remember(self) -> dict[str, Any]:
        """What a checkpoint keeps of this pull, as JSON."""
        return {
            "identity": self.identity,
            "curves": self.curves,
            "spent": dataclasses.asdict(self.budget.spent),
            "empty": self.empty,
            "stopped": self.stopped,
            "spent_examples": self.spent,
            "early": self.early.to_json(),
        }

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on from what ``remember`` gave: the work before a kill is charged as if done now."""
        self.curves = {name: [(int(u), float(v)) for u, v in curve] for name, curve in memory["curves"].items()}
        self.empty, self.stopped = int(memory["empty"]), str(memory["stopped"])
        self.spent = dict(memory["spent_examples"])
        self.early.recall(memory["early"])
        self.budget.charge(Cost(**memory["spent"]))

    def notes(self) -> dict[str, Any]:
        """The pull in a few numbers, with alarms where something looks wrong."""
        constant = _mean(self.curves.get("constant_share", []))
        gap = max((v for _, v in self.curves.get("logprob_gap", [])), default=0.0)
        alarms = [self.stopped] if self.stopped.startswith(STUCK) else []
        if constant > CONSTANT_ALARM:
            alarms.append(f"{constant:.0%} of groups were constant and trained nothing")
        most = GAP_ALARM if self.engine.trains_in_place else SERVED_ALARM
        if gap > most and self.engine.dtype == "float32":
            alarms.append(f"trainer and sampler differ by up to {gap:.2g} in a token's log-probability")
        return {
            "updates": len(self.curves.get("reward", [])),
            "constant_share": constant,
            **({"logprob_gap": gap} if self.short is None else {}),
            **(fold_notes(self.short is not None, self.curves) if self.settings.fold else {}),
            "stopped": self.stopped,
            "alarms": alarms,
            **({"best_update": self.early.best_update, "validation": self.early.curve} if self.held_out else {}),
        }


def _mean(curve: Sequence[tuple[int, float]]) -> float:
    return sum(v for _, v in curve) / len(curve) if curve else 0.0
