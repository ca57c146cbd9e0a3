"""The one grader: named, weighted criteria that turn a rollout into a score in [0, 1].

Knows nothing of models or levers. Both levers, every evaluation and every report read a rubric's
``score`` and nothing else; criteria of weight 0 are watched: reported, never optimized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dspy

from colever.errors import BudgetExhausted, InfrastructureError, TaskError
from colever.tasks.judged import Judged
from colever.tasks.source import code_digest
from colever.types import Score, Step, digest_of

CriterionFunction = Callable[[dspy.Example, dspy.Prediction, Sequence[Step]], float | bool]


@dataclass(frozen=True)
class Criterion:
    """One named line of a rubric: ``check`` returns a number in [0, 1] (a bool, a ``Judged``) for one rollout.

    ``predictor`` names the step that it speaks of: what falls short of it is told to that predictor alone.
    """

    name: str
    check: CriterionFunction
    weight: float = 1.0  # relative; 0 = watched only
    hint: str = ""  # said in the feedback where the criterion falls short
    predictor: str = ""  # "": of the whole rollout


class Rubric:
    """A weighted mean of criteria.

    Raises TaskError on construction for no criteria, a repeated name, or weights that are negative or all 0.
    """

    def __init__(self, criteria: Sequence[Criterion]) -> None:
        names = [c.name for c in criteria]
        if repeated := {n for n in names if names.count(n) > 1}:
            raise TaskError(f"rubric: criterion names must differ, repeated: {', '.join(sorted(repeated))}")
        for c in criteria:
            if not (math.isfinite(c.weight) and c.weight >= 0):
                raise TaskError(
                    f"rubric: weight of criterion {c.name!r} is {c.weight}; accepted: 0 or a positive number"
                )
        if sum(c.weight for c in criteria) <= 0:
            raise TaskError("rubric: at least one criterion needs a weight above 0")
        self.criteria = tuple(criteria)
        self._total_weight = sum(c.weight for c in criteria)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Score:
        """The score of one rollout that produced a prediction.

        Raises TaskError, naming the criterion, if a criterion raises or returns anything outside [0, 1];
        InfrastructureError, which makes no score, if what a criterion asks (a judge, a server) is broken;
        BudgetExhausted if it may be asked no more.
        """
        values = {c.name: self._value(c, example, prediction, steps) for c in self.criteria}
        total = sum(c.weight * values[c.name] for c in self.criteria) / self._total_weight
        feedback = "; ".join(_short(c, values[c.name]) for c in self._missed(values))
        told = {name: value for name, value in values.items() if isinstance(value, Judged)}
        return Score(
            total, {name: float(value) for name, value in values.items()}, feedback,
            reasons={name: value.reason for name, value in told.items() if value.reason},
            votes={name: value.votes for name, value in told.items() if value.votes},
        )  # fmt: skip

    def feedback(self, score: Score, predictor: str) -> str:
        """What a rollout's score says of one predictor's step: where that step fell short, then the whole rollout.

        No predictor is blamed for another's failure: where another step alone fell short, that is all that is said.
        """
        values = {name: Judged(value, score.reasons.get(name, "")) for name, value in score.by_criterion.items()}
        missed = self._missed(values)
        of = {name: [c for c in missed if c.predictor == name] for name in (predictor, "")}
        own, whole = ("; ".join(_short(c, values[c.name]) for c in of[name]) for name in (predictor, ""))
        if own:
            said = [f"this step: {own}", *([f"the whole run: {whole}"] if whole else [])]
        elif any(c.predictor for c in missed):
            said = ["another step fell short; nothing is known against this one"]
        else:
            said = [f"the whole run: {whole}" if whole else "nothing fell short"]
        return ". ".join([f"score {score.total:.2f}", *said])

    def _missed(self, values: Mapping[str, float]) -> list[Criterion]:
        return [c for c in self.criteria if c.weight > 0 and values[c.name] < 1]

    def lowest(self, reason: str) -> Score:
        """The score of a policy failure: 0 on every criterion."""
        return Score(0.0, {c.name: 0.0 for c in self.criteria}, reason)

    def digest(self) -> str:
        """Of names, weights, hints and the criteria's bytecode."""
        return digest_of([[c.name, c.weight, c.hint, c.predictor, code_digest(c.check)] for c in self.criteria])

    @staticmethod
    def _value(c: Criterion, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
        try:
            found = c.check(example, prediction, steps)
            value = found if isinstance(found, Judged) else float(found)
        except (InfrastructureError, BudgetExhausted):  # a judge that is broken, or may be asked no more
            raise
        except Exception as error:
            raise TaskError(f"criterion {c.name!r} raised {type(error).__name__}: {error}") from error
        if not 0.0 <= value <= 1.0:  # also refuses NaN
            raise TaskError(f"criterion {c.name!r} returned {value}; accepted: a number in [0, 1] or a bool")
        return value


def _short(criterion: Criterion, value: float) -> str:
    said = [text for text in (criterion.hint, getattr(value, "reason", "")) if text]
    return f"{criterion.name} {value:.2f}" + (f" ({'; '.join(said)})" if said else "")
