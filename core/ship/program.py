"""A bundle as a program: ``colever.load("shipped")(problem="3 + 4 * 2")``. Knows tasks and engines; no studies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy

from colever.config import API, EngineSettings, RemoteSettings
from colever.engines.calls import CallRecorder, current_call
from colever.errors import StoreError, UsageError
from colever.pipelines.adapter import RolloutAdapter
from colever.pipelines.copying import copy_program
from colever.pipelines.prompts import apply_prompts
from colever.pipelines.rollout import plain
from colever.ship.models import model_digest
from colever.ship.opened import Bundle, open_bundle
from colever.ship.tasks import task_of, with_own_rubric
from colever.tasks.task import Task
from colever.types import Candidate, Evaluation, Weights


@dataclass(frozen=True)
class Answered:
    """One answer: the prediction's fields as JSON, and the tokens of all its calls."""

    outputs: Mapping[str, Any]
    prompt_tokens: int
    completion_tokens: int


class ShippedProgram(dspy.Module):
    """The exported candidate: a task's program with its prompts, on a model with its weights; thread-safe.

    It decodes as an evaluation does, whatever ``dspy.configure`` says, and an answer that cannot be parsed raises
    DSPy's ``AdapterParseError``. ``trusted``: its rubric may be code.
    """

    def __init__(self, bundle: Bundle, task: Task, engine: Any, *, trusted: bool = False) -> None:
        super().__init__()
        self.bundle, self.task, self.engine, self.trusted = bundle, task, engine, trusted
        self.candidate = bundle.candidate if bundle.checkpoint is None else _on_checkpoint(bundle.candidate)
        self.program = apply_prompts(task.program(), bundle.candidate.prompts)
        if unknown := set(bundle.candidate.prompts) ^ {name for name, _ in self.program.named_predictors()}:
            raise UsageError(f"{bundle.folder}: predictors {sorted(unknown)} are not in both bundle and program")
        self.lm = _lm(engine, self.candidate.weights, task)
        self._adapter = RolloutAdapter()
        self._asked = itertools.count()

    @property
    def inputs(self) -> list[str]:
        """The fields that it takes."""
        return list(self.bundle.manifest.task.inputs)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return self._run(inputs)[0]

    def answer(self, inputs: Mapping[str, Any]) -> Answered:
        """The same as JSON, with tokens counted. Raises what the program raises."""
        prediction, recorder = self._run(inputs)
        lengths = [made.lengths for _, made in recorder.completions if made.lengths is not None]
        outputs = {name: plain(value) for name, value in prediction.items()}
        return Answered(outputs, sum(read for read, _ in lengths), sum(written for _, written in lengths))

    def evaluate(self, split: str = "test", *, seed: int = 0, limit: int | None = None) -> Evaluation:
        """Scores by the bundle's rubric on a split of its task, as ``colever eval`` makes them."""
        from colever.optimizers.evaluate import evaluate

        scored = with_own_rubric(self.task, self.bundle, self.trusted)
        return evaluate(self.candidate, scored, self.engine, split, seed=seed, limit=limit)

    def _run(self, inputs: Mapping[str, Any]) -> tuple[dspy.Prediction, CallRecorder]:
        if set(inputs) != set(self.inputs):
            raise UsageError(f"inputs are {sorted(inputs)}; accepted: {sorted(self.inputs)}")
        program = copy_program(self.program, self.lm)
        recorder = CallRecorder(("asked", next(self._asked)), program=program, inputs=dict(inputs))
        token = current_call.set(recorder)
        try:
            with dspy.context(
                lm=self.lm, adapter=self._adapter, disable_history=True, track_usage=False, trace=None,
                warn_on_type_mismatch=False,
            ):  # fmt: skip
                return program(**inputs), recorder
        finally:
            current_call.reset(token)


def load(
    folder: Path | str,
    *,
    trust_code: bool = False,
    model: str | Path | None = None,
    data: str | None = None,
    **engine: Any,
) -> ShippedProgram:
    """The program in a bundle, on an engine of its own; ``engine``: options that differ from the study's.

    A bundle may come from anywhere: its files are data, and its task is one that is installed, or it is refused unless
    ``trust_code`` lets a task file in it run. ``model``: where the model is, if not where the study had it. ``data``:
    the rows of a task that is made of some. Raises StoreError for what is no bundle, UsageError for what is not here.
    """
    bundle = open_bundle(folder)
    task = task_of(bundle, data, trust_code)
    return ShippedProgram(bundle, task, engine_of(bundle, model, **engine), trusted=trust_code)


def engine_of(bundle: Bundle, model: str | Path | None = None, *, own: bool = False, **options: Any) -> Any:
    """An engine on the model that the bundle refers to, or carries. Raises UsageError, StoreError."""
    from colever.engines.lm import open_policy

    said = bundle.manifest.model
    source = str(model or bundle.checkpoint or said.name)
    if model is None and not own and source.startswith(API) and "://" in source:
        raise UsageError(
            f"{bundle.folder} would send what it is asked to {source}; accepted: that as model, if you mean it"
        )
    made = open_policy(source, RemoteSettings(), EngineSettings(**{**said.engine.in_process(), **options}))
    if bundle.checkpoint is None and said.digest and model_digest(source) != said.digest:
        raise StoreError(f"model {source} is not the one that the candidate was made on: its files' digest is another")
    if hasattr(made, "gather_whole"):
        made.gather_whole()
    return made


def _on_checkpoint(candidate: Candidate) -> Candidate:
    """The same where the engine's own weights are the candidate's."""
    return replace(candidate, weights=Weights())


def _lm(engine: Any, weights: Weights, task: Task) -> dspy.LM:
    if not hasattr(engine, "named"):  # behind an API: no weights to name
        from colever.engines.lm import engine_lm as remote_lm

        return remote_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens)
    from colever.optimizers.provider import engine_lm

    return engine_lm(engine, weights=weights, temperature=task.temperature, max_tokens=task.max_tokens)
