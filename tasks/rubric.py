"""The one grader: named, weighted criteria that turn a rollout into a score in [0, 1].

Knows nothing of models or levers. Both levers, every evaluation and every report read a rubric's
``score`` and nothing else; criteria of weight 0 are watched: reported, never optimized. How criteria come together:
each value is cut by its ``clip``, counts 0 while its ``stage`` waits for an earlier one, and enters a weighted mean,
which is 0 where a ``gate`` fails. ``Score.by_criterion`` has the values as they were before any of that.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from colever.errors import BudgetExhausted, InfrastructureError, TaskError
from colever.tasks.feedback import Standing, of_step, of_whole
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
    weight: float = 1.0  # relative; 0 = watched only, unless it is a gate
    hint: str = ""  # said in the feedback where the criterion falls short
    predictor: str = ""  # "": of the whole rollout
    gate: float | None = None  # the total is 0 unless the value is at least this, whatever the stage
    clip: tuple[float, float] | None = None  # what counts is the value cut to [low, high], stretched to [0, 1]
    stage: int = 0  # counts 0 until every weighted criterion of the earlier stages is full
    form: bool = False  # speaks of form (format, type, length), not of truth

    def counted(self, value: float) -> float:
        """What of a value counts: the value itself unless it is clipped."""
        if self.clip is None:
            return value
        low, high = self.clip
        return 0.0 if value <= low else 1.0 if value >= high else (value - low) / (high - low)


class Rubric:
    """A weighted mean of criteria, with gates, clips and stages.

    Raises TaskError on construction, naming the criterion, for anything but what its fields accept.
    """

    def __init__(self, criteria: Sequence[Criterion]) -> None:
        for c in criteria:
            if fault := fault_of(c):
                raise TaskError(
                    f"rubric: {fault[0]} of criterion {c.name!r} is {getattr(c, fault[0])!r}; accepted: {fault[1]}"
                )
        names = [c.name for c in criteria]
        if repeated := {n for n in names if names.count(n) > 1}:
            raise TaskError(f"rubric: criterion names must differ, repeated: {', '.join(sorted(repeated))}")
        self.criteria = tuple(criteria)
        self._total_weight = sum(c.weight for c in criteria)
        if not 0 < self._total_weight < math.inf:
            raise TaskError(
                "rubric: at least one criterion needs a weight above 0"
                if self._total_weight == 0
                else f"rubric: the weights add up to {self._total_weight}; accepted: weights with a finite sum"
            )

    def score(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Score:
        """The score of one rollout that produced a prediction.

        Raises TaskError, naming the criterion, if a criterion raises or returns anything outside [0, 1];
        InfrastructureError, which makes no score, if what a criterion asks (a judge, a server) is broken;
        BudgetExhausted if it may be asked no more.
        """
        return self.compose({c.name: value_of(c, example, prediction, steps) for c in self.criteria})

    def compose(self, values: Mapping[str, float]) -> Score:
        """The score that these values by criterion make; they stay in it as they are."""
        standing = self._standing(values)
        told = {name: value for name, value in values.items() if isinstance(value, Judged)}
        return Score(
            self._total(values, standing),
            {name: float(value) for name, value in values.items()},
            of_whole(standing, values),
            reasons={name: value.reason for name, value in told.items() if value.reason},
            votes={name: value.votes for name, value in told.items() if value.votes},
        )

    def total(self, values: Mapping[str, float]) -> float:
        """The total of ``compose``, without words."""
        return self._total(values, self._standing(values))

    def _total(self, values: Mapping[str, float], standing: Standing) -> float:
        if standing.closed:
            return 0.0
        waiting = {c.name for c in standing.waiting}
        counted = sum(c.weight * c.counted(values[c.name]) for c in self.criteria if c.name not in waiting)
        return counted / self._total_weight

    def feedback(self, score: Score, predictor: str) -> str:
        """What a rollout's score says of one predictor's step: where that step fell short, then the whole rollout.

        No predictor is blamed for another's failure: where another step alone fell short, that is all that is said.
        """
        values = {name: Judged(value, score.reasons.get(name, "")) for name, value in score.by_criterion.items()}
        said = of_step(self._standing(values), values, predictor)
        return ". ".join([f"score {score.total:.2f}", *said])

    def _standing(self, values: Mapping[str, float]) -> Standing:
        """Which gates failed, what fell short, and which later stages wait for it."""
        short = [c for c in self.criteria if c.weight > 0 and c.counted(values[c.name]) < 1]
        first = min((c.stage for c in short), default=0)  # the earliest stage that is not full
        weighted = [c for c in self.criteria if c.weight > 0]
        return Standing(
            closed=tuple(c for c in self.criteria if c.gate is not None and values[c.name] < c.gate),
            short=tuple(c for c in short if c.stage == first),
            waiting=tuple(c for c in weighted if c.stage > first) if short else (),
        )

    def lowest(self, reason: str) -> Score:
        """The score of a policy failure: 0 on every criterion."""
        return Score(0.0, {c.name: 0.0 for c in self.criteria}, reason)

    def digest(self) -> str:
        """Of names, weights, hints, how the criteria come together, and their bytecode."""
        return digest_of([_described(c) for c in self.criteria])


def value_of(c: Criterion, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    """One criterion's value of one rollout. Raises TaskError and InfrastructureError as ``Rubric.score`` does."""
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


def _described(c: Criterion) -> list[Any]:
    """As JSON, numbers as one type: 1 and 1.0 are the same weight."""
    gate, clip = None if c.gate is None else float(c.gate), None if c.clip is None else [float(v) for v in c.clip]
    return [c.name, float(c.weight), c.hint, c.predictor, gate, clip, c.stage, c.form, code_digest(c.check)]


def fault_of(c: Criterion) -> tuple[str, str] | None:
    """The first field of a criterion that is not what it may be, and what would be accepted; None for a sound one."""
    clip: Any = c.clip
    pair = isinstance(clip, tuple | list) and len(clip) == 2 and all(map(_number, clip)) and 0 <= clip[0] < clip[1] <= 1
    fields: list[tuple[str, bool, str]] = [
        ("name", isinstance(c.name, str) and bool(c.name.strip()), "a text that is not empty"),
        ("check", callable(c.check), "a function of (example, prediction, steps)"),
        ("weight", _number(c.weight) and c.weight >= 0, "0 or a positive number"),
        ("hint", isinstance(c.hint, str), "a text"),
        ("predictor", isinstance(c.predictor, str), "a predictor's name"),
        ("gate", c.gate is None or (_number(c.gate) and 0 < c.gate <= 1), "a number above 0, at most 1, or none"),
        ("clip", clip is None or pair, "low and high with 0 <= low < high <= 1, or none"),
        ("stage", isinstance(c.stage, int) and not isinstance(c.stage, bool) and c.stage >= 0, "0, 1, 2, …"),
        ("form", isinstance(c.form, bool), "true or false"),
    ]
    return next(((field, accepted) for field, fine, accepted in fields if not fine), None)


def _number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max  # also refuses NaN, and whole numbers that no float holds
