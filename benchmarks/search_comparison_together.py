"""DSPy's ``BetterTogether`` on one of our tasks: what it chose, and what that cost by the engine's own meter.

``p`` is ``BootstrapFewShotWithRandomSearch``, ``w`` is ``colever.WeightTeleprompter`` or ``BootstrapFinetune``, on a
``colever.engine_lm``, as ``docs/dspy.md`` has them. Not their defaults: a demo needs a score of THRESHOLD (DSPy takes
any score above 0, and most wrong answers have some), errors are not counted (DSPy gives up after ten answers that do
not parse), evaluations have THREADS threads, and the random search has fewer random sets than 16.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter
from dspy.utils.callback import BaseCallback

from colever.config import WeightSettings
from colever.engines.transformers import TransformersEngine
from colever.optimizers.alternate import derive_seed
from colever.optimizers.evaluate import versions
from colever.optimizers.provider import engine_lm
from colever.optimizers.sealed import read_sealed, write_sealed
from colever.optimizers.teleprompter import WeightTeleprompter
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.tasks.task import Task
from colever.types import Candidate, Cost, Weights, digest_of

STRATEGY = "p -> w -> p"  # DSPy's default
KINDS = ("grpo", "finetune")
THRESHOLD, THREADS, ERRORS = 0.9, 128, 10**9
ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


@dataclass(frozen=True)
class Together:
    """One run: the program that it returned as a candidate, its score on dev as DSPy has it, and the cost of it all."""

    candidate: Candidate
    dev: float
    strategy: str  # the steps that the returned program had
    scores: Mapping[str, float]  # dev, by strategy
    failed: bool  # a step raised; DSPy goes on with the best so far
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "candidate": self.candidate.to_json(), "cost": asdict(self.cost)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Together:
        return cls(**{**data, "candidate": Candidate.from_json(data["candidate"]), "cost": Cost(**data["cost"])})


@dataclass(frozen=True)
class Asked:
    """All that a run depends on, and where its result lies."""

    task: Task
    engine: TransformersEngine
    kind: str  # of KINDS
    seed: int
    weights: WeightSettings  # of our weight lever
    candidates: int  # random sets of demos in each prompt step
    home: Path

    @property
    def folder(self) -> Path:
        digest = digest_of([self._digest, self.kind, self.weights.model_dump(mode="json")])
        return self.home / f"{self.task.name}-{self.kind}-s{self.seed}-{digest[:8]}"

    @property
    def kept(self) -> Path:
        """Of the prompt steps, which are the same whatever ``w`` is."""
        return self.home / f"{self.task.name}-p-s{self.seed}-{self._digest[:8]}"

    @property
    def _digest(self) -> str:
        grounds = [self.task.digest(), self.engine.digest, versions()]
        return digest_of([*grounds, STRATEGY, self.seed, self.candidates])

    def stored(self) -> Together | None:
        file = self.folder / "result.json"
        return Together.from_json(read_sealed(file)) if file.exists() else None


def better_together(asked: Asked) -> Together:
    """Run, or read where it was run. One that was cut starts anew, but for its prompt steps: see ``Kept``."""
    found = asked.stored()
    if found is None:
        shutil.rmtree(asked.folder, ignore_errors=True)
        found = _run(asked)
        write_sealed(asked.folder / "result.json", found.to_json())
    return found


def _run(asked: Asked) -> Together:
    task, engine, seed = asked.task, asked.engine, asked.seed

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return task.rubric.score(example, prediction, ()).total

    engine.load(Weights())
    lm = engine_lm(engine, weights=Weights(), temperature=task.temperature, max_tokens=task.max_tokens)
    student = task.program()
    student.set_lm(lm)
    runs = Runs(type(student))
    with quiet(), dspy.context(lm=lm, adapter=ADAPTER, callbacks=[runs], max_errors=ERRORS), runs.measured(engine):
        p = dspy.BootstrapFewShotWithRandomSearch(
            metric,
            metric_threshold=THRESHOLD,
            num_candidate_programs=asked.candidates,
            num_threads=THREADS,
            max_errors=ERRORS,
        )
        w: Teleprompter
        if asked.kind == "grpo":
            how = asked.weights.model_dump(mode="json")
            w = WeightTeleprompter(rubric=task.rubric, seed=derive_seed(seed, 1), folder=asked.folder, **how)
        else:
            w = Finetune(metric, {"output_dir": str(asked.folder), "seed": seed})
        best = dspy.BetterTogether(metric, p=Kept(p, task, runs, engine, asked.kept), w=w).compile(
            student, trainset=list(task.train), valset=list(task.dev), strategy=STRATEGY, seed=seed,
            num_threads=THREADS, max_errors=ERRORS,
        )  # fmt: skip
    scores = {c["strategy"]: c["score"] / 100 for c in best.candidate_programs}
    first = best.candidate_programs[0]
    found = engine.named.find(best.predictors()[0].lm.model)
    assert found is not None
    candidate = Candidate(read_prompts(best), found)
    failed = bool(best.flag_compilation_error_occurred)
    return Together(candidate, first["score"] / 100, first["strategy"], scores, failed, runs.cost)


class Runs(BaseCallback):
    """Counts how often the program ran, in evaluations and in training, beside what the engine counts."""

    def __init__(self, kind: type[dspy.Module]) -> None:
        self.kind, self.count, self.cost = kind, 0, Cost()
        self._lock = threading.Lock()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if type(instance) is self.kind:
            with self._lock:
                self.count += 1

    @contextlib.contextmanager
    def measured(self, engine: TransformersEngine) -> Iterator[None]:
        """Adds to ``cost`` what happens inside."""
        count, before, started = self.count, engine.meter, time.monotonic()
        yield
        spent = replace(engine.meter - before, rollouts=self.count - count, seconds=time.monotonic() - started)
        self.cost = self.cost + spent


class Kept(Teleprompter):
    """A prompt step whose result is read if the same one was run before, and then costs what it cost.

    DSPy's random search resets the program and asks the configured language model, so that it depends on nothing but
    the examples in their order: what ``w`` did before does not matter to it.
    """

    def __init__(self, inner: Teleprompter, task: Task, runs: Runs, engine: TransformersEngine, home: Path) -> None:
        super().__init__()
        self.inner, self.runs, self.engine, self.home = inner, runs, engine, home
        self.places = {id(example): place for place, (_, example) in enumerate(task.examples("train"))}

    def compile(
        self, student: dspy.Module, *, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example]
    ) -> dspy.Module:
        file = self.home / f"{digest_of([self.places[id(example)] for example in trainset])}.json"
        if file.exists():
            data = read_sealed(file)
            self.runs.cost = self.runs.cost + Cost(**data["cost"])
            return apply_prompts(student.reset_copy(), Candidate.from_json(data).prompts)
        step = Runs(self.runs.kind)
        with dspy.context(callbacks=[*dspy.settings.callbacks, step]), step.measured(self.engine):
            program = self.inner.compile(student, trainset=trainset, valset=valset)
        made = Candidate(read_prompts(program)).to_json()
        write_sealed(file, {**made, "cost": asdict(step.cost)})
        return program


class Finetune(dspy.BootstrapFinetune):
    """DSPy's own on the examples that the student answers well, which it is run on first.

    Left to itself it raises at the first answer that misses a field, or trains on what was wrong.
    """

    def __init__(self, metric: Any, train_kwargs: Mapping[str, Any]) -> None:
        super().__init__(metric, train_kwargs=dict(train_kwargs), num_threads=THREADS)

    def compile(
        self, student: dspy.Module, trainset: Sequence[dspy.Example], teacher: dspy.Module | None = None
    ) -> dspy.Module:
        evaluate = dspy.Evaluate(devset=trainset, metric=self.metric, num_threads=THREADS, max_errors=ERRORS)
        good = [example for example, _, score in evaluate(student).results if score >= THRESHOLD]
        return super().compile(student, good, teacher)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without DSPy's bars, its words per candidate, and a warning for each answer that does not parse."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
