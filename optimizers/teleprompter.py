"""The weight lever as a DSPy optimizer: GRPO on a plain ``dspy.Module``, alone or in ``dspy.BetterTogether``.

Knows DSPy programs, metrics and language models; how a pull works lies in ``weight_lever`` and is the same for both.
Unlike DSPy's own GRPO it trains on exactly the tokens that were sampled, demos included.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.teleprompt import Teleprompter

from colever.config import WeightSettings
from colever.errors import TaskError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.dspy_settings import checked
from colever.optimizers.lever import NullProgress, Progress, Pull
from colever.optimizers.provider import EngineProvider, weights_home
from colever.pipelines.copying import copy_program
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Candidate, Step, Weights, digest_of

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine

logger = logging.getLogger(__name__)

Metric = Callable[..., Any]


class WeightTeleprompter(Teleprompter):
    """Trains the weights behind a program with GRPO; ``settings`` are those of ``WeightSettings``, by name.

    ``metric(example, prediction)`` returns a bool, a number in [0, 1] or a prediction with such a ``score``; it is
    asked as in an evaluation, without a trace. A ``rubric`` may be given in its place. ``budget`` caps the cost of each
    ``compile``, as in ``Budget``. The weights are written to a new folder below ``folder``, or below DSPy's own folder
    for finetuning. With ``folder`` a ``compile`` that was killed goes on where it was if it is called again alike.

    Raises UsageError for settings that cannot be used. ``pull`` holds the curves and notes of the last ``compile``.
    """

    def __init__(
        self,
        metric: Metric | None = None,
        *,
        rubric: Rubric | None = None,
        seed: int = 0,
        budget: Mapping[str, float] | None = None,
        folder: str | Path | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if (metric is None) == (rubric is None):
            raise UsageError("metric, rubric: exactly one of them is needed")
        self.rubric = rubric if rubric is not None else metric_rubric(metric)
        self.settings = checked(WeightSettings, settings, "WeightTeleprompter")
        self.seed = seed
        self.budget = dict(budget or {})
        Budget(self.budget)  # refuses unknown caps now, not in the middle of a strategy
        self.folder = Path(folder).resolve() if folder is not None else None
        self.progress = progress or NullProgress()
        self.pull: Pull | None = None

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: Any = None,
        valset: Sequence[dspy.Example] | None = None,
        **kwargs: Any,
    ) -> dspy.Module:
        """A copy of ``student`` whose language models answer with the trained weights; ``student`` stays as it is.

        With ``fold=True`` the copy has no demos: they are in its weights.
        All predictors must use one model on a Colever engine, which ends with the trained weights. ``teacher`` and
        ``valset`` are accepted because DSPy passes them on: GRPO learns from the student's own rollouts, and choosing
        by ``valset`` is left to the caller. Raises UsageError, LeverError, BudgetExhausted and what the metric raises.
        """
        from colever.optimizers.reinforce import end_job
        from colever.optimizers.weight_lever import WeightLever

        if kwargs:
            raise UsageError(
                f"compile: unknown argument {', '.join(sorted(kwargs))}; accepted: trainset, teacher, valset"
            )
        if teacher is not None:
            logger.warning("WeightTeleprompter has no use for a teacher: it learns from the student's own rollouts")
        lms = program_lms(student)
        engine, parent, max_tokens = common_engine(lms)
        task = self._task(student, trainset, max_tokens)
        candidate = Candidate({}, parent)  # no prompts: the task's program has the student's own, as they are
        workdir = self._workdir(student, task, engine, parent)
        end_job(engine)
        with engine.named.held():
            pull = WeightLever(self.settings).improve(
                candidate, task, engine, Budget(self.budget), self.seed, workdir, self.progress
            )
            engine.load(pull.candidate.weights)
        self.pull = pull
        return apply_prompts(compiled(student, lms, engine.named.name(pull.candidate.weights)), pull.candidate.prompts)

    def _task(self, student: dspy.Module, trainset: Sequence[dspy.Example], max_tokens: int) -> Task:
        if not trainset:
            raise UsageError("trainset is empty; accepted: a list of dspy.Example with inputs marked")
        task = Task(
            name=type(student).__name__,
            program=lambda: copy_program(student, None),
            train=list(trainset),
            dev=(),
            test=(),
            rubric=self.rubric,
            max_tokens=max_tokens,
        )
        ids = [example_id for example_id, _ in task.examples("train")]
        if len(set(ids)) < len(ids):
            raise UsageError("trainset: examples repeat an id (the field id); accepted: each once, or no such field")
        return task

    def _workdir(self, student: dspy.Module, task: Task, engine: TransformersEngine, parent: Weights) -> Path:
        """A new folder, or with ``folder`` one that every equal call finds again."""
        if self.folder is None:
            path = weights_home(None)
        else:
            prompts = json.dumps([vars(p) for p in read_prompts(student).values()], default=str)
            settings = self.settings.model_dump(mode="json")
            try:
                data = task.digest()
            except TypeError as error:
                raise UsageError(f"folder: what trainset holds must be JSON to be found again: {error}") from error
            path = self.folder / digest_of([data, prompts, engine.digest, parent.digest, settings, self.seed])
        path.mkdir(parents=True, exist_ok=True)
        return path


def metric_rubric(metric: Metric | None) -> Rubric:
    """A DSPy metric as a rubric of one criterion, ``metric``."""
    if not callable(metric):
        raise UsageError(
            f"metric is a {type(metric).__name__}; accepted: a function metric(example, prediction, trace=None)"
        )
    return Rubric([Criterion("metric", MetricCheck(metric))])


class MetricCheck:
    """Asks a DSPy metric; a rubric refuses what is outside [0, 1]."""

    def __init__(self, metric: Metric) -> None:
        self.func = metric  # by this name a task's digest finds the code behind it

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
        value = self.func(example, prediction)
        if isinstance(value, dspy.Example | Mapping):  # a dspy.Prediction is one
            value = value.get("score")
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TaskError(
                f"the metric returned {value!r}; accepted: a bool, a number in [0, 1], or a dspy.Prediction with "
                "such a score"
            ) from None


def program_lms(program: dspy.Module) -> dict[str, dspy.LM]:
    """The language model of each predictor, its own or DSPy's configured one. Raises UsageError if one has none."""
    found = {name: predictor.lm or dspy.settings.lm for name, predictor in program.named_predictors()}
    if not found:
        raise UsageError("student has no predictors (dspy.Predict, dspy.ChainOfThought, …): nothing can be trained")
    for name, lm in found.items():
        if not hasattr(getattr(lm, "engine", None), "named"):
            raise UsageError(
                f"student: predictor {name!r} uses {getattr(lm, 'model', None) or 'no language model'}; accepted: "
                "colever.engine_lm(...) or colever.seed_lm(), by student.set_lm(lm) or dspy.configure(lm=lm)"
            )
    return found


def common_engine(lms: Mapping[str, dspy.LM]) -> tuple[TransformersEngine, Weights, int]:
    """The engine, weights and bound on completions that all predictors share. Raises UsageError where they differ."""
    first = next(iter(lms.values()))
    engine: TransformersEngine = first.engine
    parent = engine.named.find(first.model) or engine.weights
    max_tokens = int(first.kwargs.get("max_tokens") or 256)
    for name, lm in lms.items():
        if lm.engine is not engine or (engine.named.find(lm.model) or engine.weights) != parent:
            raise UsageError(
                f"student: predictor {name!r} uses {lm.model} and another {first.model}; accepted: one engine with the "
                "same weights for all predictors"
            )
        max_tokens = max(max_tokens, int(lm.kwargs.get("max_tokens") or 256))
    return engine, parent, max_tokens


def compiled(student: dspy.Module, lms: Mapping[str, dspy.LM], model: str) -> dspy.Module:
    """A copy of ``student`` with its language models on the weights that ``model`` names; shared ones stay shared."""
    fresh: dict[int, dspy.LM] = {}
    for lm in lms.values():
        fresh.setdefault(id(lm), lm.copy(model=model))
    program = copy_program(student, None)
    for name, predictor in program.named_predictors():
        predictor.lm = fresh[id(lms[name])]
        if not predictor.lm.provider.finetunable:
            predictor.lm.provider = EngineProvider(predictor.lm.engine)
    program._compiled = True
    return program
