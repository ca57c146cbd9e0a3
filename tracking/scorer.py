"""A rubric as a scorer of MLflow's: for ``mlflow.genai.evaluate`` and traces. Knows a rubric by its ``score`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import dspy

from colever.errors import InfrastructureError
from colever.types import Score, Step


class Grader(Protocol):
    """What a rubric is here."""

    def score(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Score: ...

    def lowest(self, reason: str) -> Score: ...


def rubric_scorer(rubric: Grader, name: str = "rubric", field: str = "answer") -> Any:
    """An ``mlflow.genai.scorers.Scorer`` of the total, with the rubric's feedback as rationale, and of each criterion.

    A row's ``inputs`` and ``expectations`` become the example; ``outputs`` the prediction: a mapping as it stands, any
    other value as ``field``, nothing at all the lowest score. Criteria see no steps. Assessments are called ``name``
    and ``name/criterion``; where the machinery behind a criterion fails there is one, with the error and no value.
    """
    from mlflow.entities import Feedback
    from mlflow.genai.scorers import scorer

    def grade(inputs: Any, outputs: Any, expectations: Any) -> list[Feedback]:
        try:
            score = _score(rubric, field, inputs, outputs, expectations)
        except InfrastructureError as error:
            return [Feedback(name=name, error=error)]
        total = Feedback(name=name, value=score.total, rationale=score.feedback or "nothing fell short")
        return [total, *(Feedback(name=f"{name}/{c}", value=value) for c, value in score.by_criterion.items())]

    return scorer(grade, name=name)


def _score(rubric: Grader, field: str, inputs: Any, outputs: Any, expectations: Any) -> Score:
    asked = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
    example = dspy.Example(**{**asked, **(expectations or {})}).with_inputs(*asked)
    if outputs is None:
        return rubric.lowest("there is no output")
    if isinstance(outputs, dspy.Prediction):
        return rubric.score(example, outputs, ())
    return rubric.score(example, dspy.Prediction(**(outputs if isinstance(outputs, Mapping) else {field: outputs})), ())
