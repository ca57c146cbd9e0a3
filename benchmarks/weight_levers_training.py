"""The three levers of ``weight_levers.py`` behind one signature: a task, an engine and settings in, weights out.

Each trains the engine's own model from the shipped weights and the task's bare program. What a lever cannot be told
is its own default; what it needs to be told to work at all stands here with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
import weight_levers_trl
from dspy.teleprompt.grpo import GRPO
from dspy.utils.exceptions import AdapterParseError

import colever.optimizers.grpo  # noqa: F401 - what a lever imports when it is pulled is no training
from colever.config import WeightSettings
from colever.engines.transformers import TransformersEngine
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.provider import engine_lm
from colever.optimizers.reinforce import end_job
from colever.optimizers.trainable import save_weights
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.task import Task
from colever.types import Weights

Notes = dict[str, Any]
Train = Callable[[Task, TransformersEngine, WeightSettings, int, Path], tuple[Weights, Notes]]

# Groups that DSPy makes per example, by task: its trainer takes examples × this many per update, and DSPy does not say
# how many it will make. Two predictors, one call each. An agent's calls are cut to the fewest that any rollout of the
# group made: 32 groups per update of 16 examples at first, about 50 later. On dev 2 was better than 3 (gold 75 and
# 65 %); filling the calls up (``variably_invoked_predictor_grouping_mode="fill"``) ended at 0 %.
GROUPS: Mapping[str, float] = {"arithmetic": 2, "routing": 2, "lookup": 2}


def train_colever(
    task: Task, engine: TransformersEngine, s: WeightSettings, seed: int, folder: Path
) -> tuple[Weights, Notes]:
    budget = Budget()
    pull = WeightLever(s).improve(task.base_candidate(), task, engine, budget, seed, folder, NullProgress())
    notes = {**pull.notes, "rollouts": budget.spent.rollouts, "reward": [v for _, v in pull.metrics["reward"]]}
    return pull.candidate.weights, notes


class AllOrNothing(dspy.ChatAdapter):
    """An answer that misses some of its fields is told of as one that misses all of them.

    DSPy 3.4.1 rewards the former by ``present / expected``, which are two lists: it raises TypeError inside the
    rollout, which is then dropped instead of punished, and the policy learns to leave fields out. The latter it
    punishes.
    """

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        try:
            return super().parse(signature, completion)
        except AdapterParseError as error:
            error.parsed_result = None
            raise


def train_dspy_grpo(
    task: Task, engine: TransformersEngine, s: WeightSettings, seed: int, folder: Path
) -> tuple[Weights, Notes]:
    """DSPy's GRPO as it stands. Not its defaults: no demos (the default raises), the rollouts' adapter (else prompts
    are trained in XML), as many threads as rollouts (so that they share batches), ``groups_per_update``."""
    adapter = AllOrNothing(use_json_adapter_fallback=False)
    lm = engine_lm(engine, temperature=s.temperature, max_tokens=task.max_tokens)
    student = task.program()
    student.set_lm(lm)
    rollouts = s.examples_per_update * s.group_size
    optimizer = GRPO(
        metric=lambda example, prediction, trace=None: task.score(example, prediction, ()).total,
        exclude_demos=True,
        adapter=adapter,
        num_threads=rollouts,
        num_train_steps=s.updates,
        num_dspy_examples_per_grpo_step=s.examples_per_update,
        num_rollouts_per_grpo_step=s.group_size,
        seed=seed,
        train_kwargs={
            "groups_per_update": round(s.examples_per_update * GROUPS.get(task.name, 2)),
            "learning_rate": s.learning_rate,
            "warmup": s.warmup,
            "loss": s.loss,
            "beta": s.beta,
            "scale_rewards": s.scale_rewards,
            "max_grad_norm": s.max_grad_norm,
            "seed": seed,
            "output_dir": str(folder),
        },
    )
    settings = {"lm": lm, "adapter": adapter, "disable_history": True, "warn_on_type_mismatch": False}
    try:
        with dspy.context(**settings), contextlib.redirect_stdout(io.StringIO()):  # it draws a bar per update
            trained = optimizer.compile(student, trainset=list(task.train))
    finally:
        end_job(engine)
    weights = engine.named.find(trained.predictors()[0].lm.model)
    assert weights is not None
    return weights, {"rollouts": s.updates * rollouts}


def train_trl(
    task: Task, engine: TransformersEngine, s: WeightSettings, seed: int, folder: Path
) -> tuple[Weights, Notes]:
    notes = weight_levers_trl.train(task, engine, s, seed, folder / "training")
    weights = save_weights(engine.model, engine, Weights(), s.model_copy(update={"peft": "none"}), folder / "weights")
    return weights, {**notes, "rollouts": s.updates * s.examples_per_update * s.group_size}


LEVERS: Mapping[str, Train] = {"colever": train_colever, "dspy_grpo": train_dspy_grpo, "trl": train_trl}


def without_gold(task: Task) -> Task:
    """What a lever may see of a task."""
    return dataclasses.replace(task, gold=None)
