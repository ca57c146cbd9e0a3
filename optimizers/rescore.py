"""A stored study's kept rollouts under another rubric: what each criterion would have said. Reads files; asks no model.

Kept rollouts are words: texts may be cut and there are no tokens (``core/samples.py``). A criterion that reads what was
not kept gives no value here, rather than a wrong one, and is named with what it read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from pydantic import TypeAdapter

from colever.errors import TaskError
from colever.optimizers.named_rounds import find_round
from colever.optimizers.sample import STEPS
from colever.optimizers.side_by_side import rollouts_of
from colever.optimizers.study import StudyFolder
from colever.pipelines.plain import plain
from colever.samples import SampledRollout
from colever.tasks.rubric import value_of
from colever.tasks.task import Task
from colever.types import Completion, Step

TOKENS = ("prompt_ids", "completion_ids", "logprobs")
CUT = re.compile(r" … \([\d,]+ characters left out\) … ")


@dataclass(frozen=True)
class Rescored:
    """One rollout: its score as it was stored and as the other rubric has it (None: no score)."""

    example_id: str
    old: float | None
    new: float | None
    old_by_criterion: Mapping[str, float]
    by_criterion: Mapping[str, float]  # of the other rubric; without those that gave no value
    failure: str | None = None


@dataclass(frozen=True)
class Rescoring:
    """A round's kept rollouts on a split, ``kept`` of the ``evaluated`` ones."""

    study: str
    which: str
    split: str
    kept: int
    evaluated: int
    criteria: tuple[str, ...]
    rollouts: tuple[Rescored, ...]
    lacking: Mapping[str, str]  # criterion → why it gave no value
    notes: tuple[str, ...]


class NotKeptError(Exception):
    """What a kept rollout does not have."""


class KeptCompletion(Completion):
    """A completion in words: its tokens raise where they are read, and lengths are as they were counted."""

    def __getattribute__(self, name: str) -> Any:
        if name in TOKENS:
            raise NotKeptError(f"kept rollouts have no {name}")
        return super().__getattribute__(name)

    @property
    def lengths(self) -> tuple[int, int] | None:
        return self.counted


def rescore(folder: StudyFolder, task: Task, which: str, split: str) -> Rescoring:
    """The kept rollouts of ``base``, ``winner`` or a round such as ``2.1``, scored by the task's rubric.

    Raises UsageError for a round that there is not and where none were kept, InfrastructureError from a judge.
    """
    kept = rollouts_of(folder, which, split)
    state = folder.state()
    assert state is not None  # rollouts_of has read it
    evaluation = folder.evaluations(state)(find_round(folder, state, which).candidate, split)
    rows, lacking = dict(task.examples(split)), dict[str, str]()
    made = tuple(_rescored(task, rollout, rows.get(rollout.example_id), lacking) for rollout in kept)
    return Rescoring(
        folder.name, which, split, len(kept), len(evaluation.example_ids) if evaluation else len(kept),
        tuple(c.name for c in task.rubric.criteria), made, lacking, tuple(_notes(kept, rows)),
    )  # fmt: skip


def _rescored(task: Task, rollout: SampledRollout, row: dspy.Example | None, lacking: dict[str, str]) -> Rescored:
    old = rollout.example_id, rollout.total
    if rollout.failure is not None:
        low = task.rubric.lowest(rollout.reason)
        new = None if rollout.failure == "infrastructure" else low.total
        values = {} if rollout.failure == "infrastructure" else low.by_criterion
        return Rescored(*old, new, rollout.by_criterion, values, rollout.failure)
    example = row if row is not None and not _moved(rollout, row) else _example(rollout)
    prediction, steps, values = _prediction(task, rollout), _steps(rollout), dict[str, float]()
    for criterion in task.rubric.criteria:
        try:
            values[criterion.name] = value_of(criterion, example, prediction, steps)
        except TaskError as error:
            missing = isinstance(error.__cause__, NotKeptError)
            lacking.setdefault(criterion.name, str(error.__cause__) if missing else str(error))
    whole = len(values) == len(task.rubric.criteria)
    return Rescored(*old, task.rubric.compose(values).total if whole else None, rollout.by_criterion, values)


def _notes(kept: Sequence[SampledRollout], rows: Mapping[str, dspy.Example]) -> list[str]:
    """What the new scores may not be trusted for."""
    cut = sum(bool(CUT.search(json.dumps(r.to_json(), ensure_ascii=False))) for r in kept)
    moved = sum(r.example_id not in rows or _moved(r, rows[r.example_id]) for r in kept)
    long = sum(len(r.steps) == STEPS for r in kept)
    said = [
        (cut, "texts that were cut when they were kept: criteria read what is left"),
        (moved, "examples that the task no longer has so: criteria read the kept fields"),
        (long, f"{STEPS} steps, the most that are kept: there may have been more"),
    ]
    return [f"{count} of {len(kept)} rollouts have {what}" for count, what in said if count]


def _moved(rollout: SampledRollout, row: dspy.Example) -> bool:
    """Whether the task's example of that id is another one by now; a field that was cut cannot tell."""
    fields = plain({**row.inputs().toDict(), **row.labels().toDict()})
    kept = {**rollout.inputs, **rollout.expected}
    return fields.keys() != kept.keys() or any(not _is_cut(v) and v != fields[name] for name, v in kept.items())


def _is_cut(value: Any) -> bool:
    return isinstance(value, str) and CUT.search(value) is not None


def _example(rollout: SampledRollout) -> dspy.Example:
    return dspy.Example(**{**rollout.inputs, **rollout.expected}).with_inputs(*rollout.inputs)


def _prediction(task: Task, rollout: SampledRollout) -> dspy.Prediction:
    """The outputs, as the types that the program's predictors give them where JSON still fits these."""
    outputs = [p.signature.output_fields for _, p in task.program().named_predictors()]
    types = {name: field.annotation for by_name in outputs for name, field in by_name.items()}
    return dspy.Prediction(**{name: _typed(value, types.get(name)) for name, value in rollout.outputs.items()})


def _typed(value: Any, annotation: Any) -> Any:
    if annotation in (None, str, int, float, bool) or _is_cut(value):
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except Exception:  # noqa: BLE001 - the boundary to a user's type: the program may have made another of it
        return value


def _steps(rollout: SampledRollout) -> tuple[Step, ...]:
    made, counts = list[Step](), Counter[str]()
    for step in rollout.steps:
        counted = (step.prompt_tokens, step.completion_tokens)
        completion = KeptCompletion(
            step.completion, (), (), (), step.finish_reason, "", step.prompt,  # type: ignore[arg-type]
            counted if any(counted) else None,
        )  # fmt: skip
        made.append(Step(step.predictor, counts[step.predictor], completion, step.failed, step.inputs, step.outputs))
        counts[step.predictor] += 1
    return tuple(made)
