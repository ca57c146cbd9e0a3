"""DSPy's reinforcement job on the engine's own model: groups of text with rewards in, one optimizer step out.

Knows DSPy's groups, the engine and our trainer; nothing of programs or metrics. Rows, advantages, loss, optimizer and
layout are those of the weight lever (``trajectories``, ``grpo``). What differs is what DSPy hands over, and it makes
these updates **off-policy by construction**:

- text, not tokens: it is rendered and tokenized again, and an end token is put behind a completion that may have been
  cut off;
- prompts without the demos that the rollouts had, in the format of the optimizer's ``adapter`` (XML unless one is
  given) whatever the rollouts' was;
- completions written anew from the parsed fields, whatever the model wrote around them;
- groups that it fills by repeating members, and, where more groups are made than ``groups_per_update``, groups kept
  from earlier steps.

``WeightLever`` and ``WeightTeleprompter`` train on exactly what was sampled.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dspy.clients.provider import ReinforceJob
from dspy.clients.utils_finetune import GRPOStatus, TrainDataFormat

from colever.errors import LeverError, UsageError
from colever.optimizers.dspy_settings import ReinforceSettings, checked
from colever.optimizers.finetune import completion_ids
from colever.optimizers.trainable import save_weights, trainable
from colever.optimizers.trajectories import TrainingBatch, training_batch
from colever.types import Completion, Cost, Rollout, Score, Step, Weights

if TYPE_CHECKING:
    import dspy

    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.grpo_settings import GrpoSettings

# DSPy remembers for good which batches it has filled: an id that came back would never be filled again.
_batch_ids = itertools.count()
_live: WeakKeyDictionary[TransformersEngine, EngineReinforceJob] = WeakKeyDictionary()


class EngineReinforceJob(ReinforceJob):
    """One run of updates on the engine's own model, in place; ``lm`` follows it and is told of the result at the end.

    Raises UsageError for settings or groups that cannot be used, LeverError where an update fails.
    """

    def __init__(
        self, lm: dspy.LM, train_kwargs: dict[str, Any] | None, engine: TransformersEngine, home: Path
    ) -> None:
        super().__init__(lm=lm, train_kwargs=train_kwargs)
        self.settings = checked(ReinforceSettings, self.train_kwargs, "train_kwargs")
        self.engine, self.folder = engine, home
        self.temperature = float(lm.kwargs.get("temperature") or 0.0)
        if self.temperature <= 0:
            raise UsageError("temperature of the LM is 0: all rollouts of a group would be the same; accepted: above 0")
        self.metrics: list[dict[str, float]] = []  # of every update
        self.state = "not_started"
        self._stack = ExitStack()
        self._result: Weights | None = None
        self._pending = self._new_ids()

    def initialize(self) -> None:
        """Take the engine's model to train it. A job on it that was never ended is cancelled: DSPy forgets them."""
        end_job(self.engine)
        self.parent_model = self.lm.model
        self.parent = self.engine.named.find(self.lm.model) or self.engine.weights
        self._stack.enter_context(self.engine.named.held())
        self._stack.callback(self._settle)  # after the training, while nobody else may swap
        try:
            self.model = self._stack.enter_context(
                trainable(self.engine, self.parent, self.settings.weights(), self.settings.seed)
            )
            self._updates = _Updates(self.model, self.engine, self._grpo_settings(), self.folder / "training")
        except BaseException:  # an interrupt too: the parent's weights come back, then it goes on up
            self._abandon()
            raise
        self.lm.model = f"colever/{self.engine.name}"  # whatever the model holds: the weights as they are trained
        self.state = "running"
        _live[self.engine] = self

    def step(
        self, train_data: Sequence[Mapping[str, Any]], train_data_format: TrainDataFormat | str | None = None
    ) -> None:
        """One update on groups ``{"batch_id": …, "group": [{"messages", "completion", "reward"}, …]}``."""
        self._check_running()
        if train_data_format not in (TrainDataFormat.GRPO_CHAT, None):
            raise UsageError(f"train_data_format {train_data_format!r}; accepted: {TrainDataFormat.GRPO_CHAT.value!r}")
        if len(self.metrics) >= self.settings.max_updates:
            raise UsageError(f"train_kwargs: max_updates={self.settings.max_updates} are made; accepted: a larger one")
        batch = self._batch(train_data)
        try:
            metrics = self._updates.make(batch)
        except BaseException:  # an interrupt too: a model half trained is nobody's
            self.cancel()
            raise
        self.metrics.append({"reward": batch.reward, "constant_share": batch.constant_share, **metrics})
        self._pending = self._new_ids()

    def get_status(self) -> GRPOStatus:
        """What DSPy asks for between steps; as many batches are pending as the next update takes groups."""
        return GRPOStatus(
            job_id=f"{self.engine.name}-{id(self):x}",
            status=self.state,
            current_model=self.lm.model,
            checkpoints=dict(self.checkpoints),
            last_checkpoint=self.last_checkpoint,
            pending_batch_ids=list(self._pending) if self.state == "running" else [],
        )

    def status(self) -> GRPOStatus:
        return self.get_status()

    def save_checkpoint(self, checkpoint_name: str) -> None:
        """The weights as they are now, under a name of their own: ``checkpoints[name]`` is a model name."""
        self._check_running()
        if self.settings.peft != "none" and self.parent.kind == "full":
            raise UsageError("save_checkpoint: an adapter on full weights is saved merged, which ends its training")
        self.checkpoints[checkpoint_name] = self.engine.named.name(self._save(f"checkpoint-{checkpoint_name}"))
        self.last_checkpoint = checkpoint_name

    def terminate(self) -> None:
        """End the training; the LM answers with the trained weights, which the engine holds and its folder keeps."""
        if self.state != "running":
            return
        try:
            self._updates.end()
            weights = self._save("weights")
        except BaseException:  # an interrupt too: a model half trained is nobody's
            self.cancel()
            raise
        self._result = weights
        _live.pop(self.engine, None)
        self._stack.close()
        self.lm.model = self.engine.named.name(weights)
        self.state = "succeeded"

    def cancel(self) -> None:
        """End the training without a result: the engine and the LM have the weights from before it."""
        if self.state != "running":
            return
        self.state = "cancelled"
        _live.pop(self.engine, None)
        self._updates.end()
        self._abandon()
        self.lm.model = self.parent_model

    def _settle(self) -> None:
        if self._result is not None:
            self.engine.load(self._result)

    def _abandon(self) -> None:
        """Leave as after an error: ``trainable`` then brings the parent back."""
        self._stack.__exit__(LeverError, LeverError("cancelled"), None)

    def _new_ids(self) -> list[int]:
        return [next(_batch_ids) for _ in range(self.settings.groups_per_update)]

    def _save(self, name: str) -> Weights:
        return save_weights(self.model, self.engine, self.parent, self.settings.weights(), self.folder / name)

    def _check_running(self) -> None:
        if self.state != "running":
            raise UsageError(f"the job is {self.state}: lm.reinforce(...) starts one")

    def _batch(self, train_data: Sequence[Mapping[str, Any]]) -> TrainingBatch:
        rollouts = [
            self._rollout(f"group-{place}", sample, row)
            for place, group in enumerate(train_data)
            for sample, row in enumerate(group["group"])
        ]
        return training_batch(rollouts, version=self.engine.version, scaling=self.settings.scale_rewards)

    def _rollout(self, example_id: str, sample: int, row: Mapping[str, Any]) -> Rollout:
        text, version = row["completion"]["content"], self.engine.version
        prompt, ids = self.engine.render(row["messages"]), completion_ids(self.engine, row["completion"]["content"])
        if len(prompt) + len(ids) > self.engine.context:
            raise UsageError(f"{example_id}: {len(prompt)} + {len(ids)} tokens; the model takes {self.engine.context}")
        # Nobody knows how likely these tokens were when their text was sampled; the loss takes the policy as its own
        # reference and does not ask.
        unknown = (0.0,) * len(ids)
        step = Step("", 0, Completion(text, prompt, ids, unknown, "stop", version))
        return Rollout(example_id, sample, (step,), Score(float(row["reward"]), {}), {}, version=version)

    def _grpo_settings(self) -> GrpoSettings:
        from colever.optimizers.grpo_settings import GrpoSettings

        s = self.settings
        return GrpoSettings(
            updates=s.max_updates + 1,  # one that is never asked for: TRL's loop must not end by itself
            learning_rate=s.learning_rate,
            warmup=s.warmup,
            schedule="constant",
            temperature=self.temperature,
            beta=s.beta,
            loss=s.loss,
            max_grad_norm=s.max_grad_norm,
            max_completion=int(self.lm.kwargs.get("max_tokens") or 256),
            max_tokens=s.batch_tokens,
            save_every=s.max_updates + 2,  # no trainer's checkpoints: DSPy cannot go on from them
            seed=s.seed,
        )


def end_job(engine: TransformersEngine) -> None:
    """Cancel the job that trains the engine's model, if there is one."""
    job = _live.get(engine)
    if job is not None:
        job.cancel()


class _Updates:
    """TRL's loop in a thread of its own, which asks for its next batch; ``make`` hands it one and waits."""

    def __init__(self, model: Any, engine: TransformersEngine, settings: GrpoSettings, folder: Path) -> None:
        from colever.optimizers.grpo import ProgramTrainer

        self._batches: SimpleQueue[TrainingBatch | None] = SimpleQueue()
        self._asked: SimpleQueue[BaseException | None] = (
            SimpleQueue()
        )  # an entry whenever the loop wants a batch or ends
        self._heard: dict[str, float] = {}
        self._engine = engine
        self._trainer = ProgramTrainer(
            model, engine.tokenizer, settings, folder, self._next, self._after, touched=engine.touched
        )
        self._thread = threading.Thread(target=self._run, daemon=True, name="reinforce")
        self._thread.start()
        self._await()

    def make(self, batch: TrainingBatch) -> dict[str, float]:
        """One update, booked on the engine; its metrics. Raises what the trainer raises."""
        tokens, flops = self._trainer.trained_tokens, self._trainer.flops
        self._engine.rest()
        self._batches.put(batch)
        self._await()
        trained = Cost(trained_tokens=self._trainer.trained_tokens - tokens, flops=self._trainer.flops - flops)
        self._engine.book(trained)
        return self._heard

    def end(self) -> None:
        """Stop the loop and give the model back as it came."""
        self._batches.put(None)
        self._thread.join()
        self._trainer.release()

    def _await(self) -> None:
        error = self._asked.get()
        if error is not None:
            raise error

    def _next(self, update: int) -> TrainingBatch | None:
        self._asked.put(None)
        return self._batches.get()

    def _after(self, update: int, metrics: dict[str, float]) -> None:
        self._heard = dict(metrics)

    def _run(self) -> None:
        error: BaseException = LeverError("the training loop has ended")
        try:
            self._trainer.run(None)
        except BaseException as raised:  # noqa: BLE001 - carried to the thread that waits for the update
            error = raised
        self._asked.put(error)
