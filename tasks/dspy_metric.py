"""A rubric as a metric of DSPy: for ``dspy.Evaluate``, for optimizers that bootstrap demos, and for ``dspy.GEPA``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dspy
from dspy.teleprompt.bootstrap_trace import FailedPrediction

from colever.pipelines.plain import plain
from colever.tasks.rubric import Rubric
from colever.tasks.task import Task
from colever.types import Completion, Step


class Value(float):
    """A score that is true where it is high enough: what bootstraps demos asks no more than that."""

    def __new__(cls, total: float, accept: float) -> Value:
        value = super().__new__(cls, total)
        value.accept = accept
        return value

    accept: float

    def __bool__(self) -> bool:
        return float(self) >= self.accept

    def __reduce__(self) -> tuple[Any, ...]:
        return Value, (float(self), self.accept)


def rubric_metric(
    graded: Task | Rubric, accept: float = 1.0, program: dspy.Module | None = None
) -> Callable[..., Value | dspy.Prediction]:
    """A metric ``(example, prediction, trace=None, pred_name=None, pred_trace=None)``.

    Its value is the total score; as a truth value, which is how demos are bootstrapped, it is ``accept`` or more. Asked
    about one predictor, as ``dspy.GEPA`` does, it gives a ``dspy.Prediction`` of score and feedback to that predictor.
    Criteria see the calls of ``trace`` as steps with fields and without tokens; there are none where DSPy hands over no
    trace (``dspy.Evaluate``). ``program`` (a task has its own) names their predictors. DSPy makes a failure score of
    any error: an InfrastructureError among them.
    """
    rubric = graded.rubric if isinstance(graded, Task) else graded
    names = _names(graded.program() if program is None and isinstance(graded, Task) else program)

    def rubric_score(
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
    ) -> Value | dspy.Prediction:
        if isinstance(prediction, FailedPrediction):
            score = rubric.lowest("the answer could not be parsed")
        else:
            score = rubric.score(example, prediction, _steps(trace or (), names))
        if pred_name is None:
            return Value(score.total, accept)
        return dspy.Prediction(score=score.total, feedback=rubric.feedback(score, pred_name))

    return rubric_score


def _names(program: dspy.Module | None) -> dict[Any, str]:
    """Predictors by their fields, which copies and new instructions keep; those that share them have no name."""
    names: dict[Any, str] = {}
    for name, predictor in program.named_predictors() if program is not None else ():
        key = _fields(predictor)
        names[key] = "" if key in names else name
    return names


def _fields(predictor: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    signature = predictor.signature
    return tuple(signature.input_fields), tuple(signature.output_fields)


def _steps(trace: Sequence[Any], names: dict[Any, str]) -> list[Step]:
    steps: list[Step] = []
    for predictor, inputs, outputs in trace:
        name = names.get(_fields(predictor), "")
        failed = isinstance(outputs, FailedPrediction)
        completion = Completion(str(outputs.completion_text) if failed else "", (), (), (), "stop", "")
        occurrence = sum(step.predictor == name for step in steps)
        said = {} if failed else plain(dict(outputs.items()))
        steps.append(Step(name, occurrence, completion, failed, plain(dict(inputs)), said))
    return steps
