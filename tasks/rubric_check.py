"""A rubric tried before a model is: what labelled answers get, what bad ones get, and what is wrong with that.

Knows tasks and the answers of ``bad_answers``; asks no model (a criterion may: a judge answers here as in a run).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from colever.errors import TaskError
from colever.tasks.bad_answers import BAD, Answer, Labels, bad_answers, labelled_answers
from colever.tasks.rubric import value_of
from colever.tasks.task import Task
from colever.types import Score

MOST = 0.5  # share of the labelled answers' total that a bad answer may get
LABELLED = "labelled"


@dataclass(frozen=True)
class CheckedRow:
    """One kind of answer: means over those that have a score, failures counted as the 0 that they are."""

    name: str
    what: str
    answers: int
    failures: int  # of them, that could not be read: policy failures
    total: float | None  # None: no answer has a score
    gold: float | None
    by_criterion: Mapping[str, float]
    broken: Mapping[str, str]  # criterion → why it gave no value
    scores: tuple[Score, ...] = field(default=(), repr=False)  # of those that could be read


@dataclass(frozen=True)
class RubricCheck:
    """The rows, labelled answers first: why it can't work (``faults``), what to mend, and what to know (``notes``)."""

    task: str
    split: str
    rows: tuple[CheckedRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    faults: tuple[str, ...] = ()


def check_rubric(task: Task, split: str = "train", limit: int | None = 64, most: float = MOST) -> RubricCheck:
    """Scores labelled and bad answers of the split's first examples. Raises TaskError where there are none."""
    labels = labelled_answers(task, split, limit)
    rows = [_row(task, LABELLED, "the right answer", labels.answers)]
    rows += [_row(task, name, BAD[name], made) for name, made in bad_answers(task, labels.answers).items() if made]
    faults = [*_faults(rows[0], labels)]
    warnings = [*_of_labelled(rows[0], labels), *_broken(rows)] if not faults else [*_broken(rows[1:])]
    warnings += _paid(task, rows, most)
    notes, constant = [*_earned(task, rows, most)], [*_constant(task, rows)]
    if any(row.failures for row in rows):  # it tells those apart: what cannot be read gets 0
        notes += [f"{line}: it tells only from those that could not" for line in constant]
    else:
        warnings += [f"{line}: it tells none of them apart" for line in constant]
    return RubricCheck(task.name, split, tuple(rows), tuple(warnings), tuple(notes), tuple(faults))


def _row(task: Task, name: str, what: str, answers: Sequence[Answer]) -> CheckedRow:
    scores, broken, failed = list[Score](), dict[str, str](), 0
    for answer in answers:
        if answer.failure:
            failed += 1
        elif (score := _score(task, answer, broken)) is not None:
            scores.append(score)
    counted = [*scores, *([task.fail("")] * failed)]
    names = counted[0].by_criterion if counted else ()
    golds = [s.gold for s in counted if s.gold is not None]
    return CheckedRow(
        name, what, len(answers), failed,
        total=_mean([s.total for s in counted]) if counted else None,
        gold=_mean(golds) if golds else None,
        by_criterion={name: _mean([s.by_criterion[name] for s in counted]) for name in names},
        broken=broken, scores=tuple(scores),
    )  # fmt: skip


def _score(task: Task, answer: Answer, broken: dict[str, str]) -> Score | None:
    """None where a criterion gives no value, which is noted."""
    values: dict[str, float] = {}
    for criterion in task.rubric.criteria:
        try:
            values[criterion.name] = value_of(criterion, answer.example, answer.prediction, answer.steps)
        except TaskError as error:
            broken.setdefault(criterion.name, str(error))
    try:
        gold = task.gold_of(answer.example, answer.prediction)
    except TaskError as error:
        broken.setdefault("gold", str(error))
        return None
    if len(values) < len(task.rubric.criteria):
        return None
    score = task.rubric.compose(values)
    return Score(score.total, score.by_criterion, score.feedback, gold)


# --- what is said of the rows ------------------------------------------------------------------------


def _faults(row: CheckedRow, labels: Labels) -> Iterator[str]:
    """Why no run can go well: none of it is certain where no label tells what a predictor writes."""
    if not labels.whole:
        return
    for reason in row.broken.values():
        yield f"{row.name}: {reason}; a right answer would end a whole run"
    if row.total == 0:
        yield f"labelled answers get 0, so that this rubric pays for no right answer: {_pairs(row.by_criterion)}"


def _of_labelled(row: CheckedRow, labels: Labels) -> Iterator[str]:
    short = [s for s in row.scores if s.total < 1]
    empty = (
        f"; no label tells {', '.join(labels.empty)}, which stayed empty: Task(labelled=…) can" if labels.empty else ""
    )
    if row.total is None:
        yield f"no labelled answer has a score{empty}"
    elif short:
        missed = {n: v for n, v in row.by_criterion.items() if v < 1 and any(s.by_criterion[n] < 1 for s in short)}
        yield (
            f"labelled answers get less than 1 in {len(short)} of {row.answers} ({row.total:.2f} on average): "
            f"{_pairs(missed)}{empty}"
        )
    if row.gold is not None and row.gold < 1:
        yield f"gold gives labelled answers {row.gold:.2f}"


def _broken(rows: Sequence[CheckedRow]) -> Iterator[str]:
    for row in rows:
        for reason in row.broken.values():
            yield f"{row.name}: {reason}; such an answer would end a whole run"


def _paid(task: Task, rows: Sequence[CheckedRow], most: float) -> Iterator[str]:
    """Bad answers that get too much."""
    best = rows[0].total or 1.0
    for row in rows[1:]:
        if row.total is not None and row.total > most * best:
            gold = ", though gold gives it 0" if row.gold == 0 else ""
            yield (
                f"{row.name} ({row.what}) gets {row.total / best:.0%} of what labelled answers get{gold}: "
                f"{_pairs(_paying(task, row))}"
            )


def _earned(task: Task, rows: Sequence[CheckedRow], most: float) -> Iterator[str]:
    """Bad answers that get something for which gold gives nothing, within what is allowed."""
    best = rows[0].total or 1.0
    for row in rows[1:]:
        if row.total is not None and row.gold == 0 and 0.005 <= row.total <= most * best:
            yield f"{row.name} gets {row.total:.2f} where gold gives 0: {_pairs(_paying(task, row))}"


def _constant(task: Task, rows: Sequence[CheckedRow]) -> Iterator[str]:
    """Criteria that have one value on every answer that could be read."""
    scores = [score for row in rows for score in row.scores]
    for criterion in task.rubric.criteria:
        values = {score.by_criterion[criterion.name] for score in scores}
        if len(values) == 1 and len(scores) > 1:
            yield f"{criterion.name} is {values.pop():.2f} on all {len(scores)} answers that could be read"


def _paying(task: Task, row: CheckedRow) -> dict[str, float]:
    return {c.name: row.by_criterion[c.name] for c in task.rubric.criteria if c.weight and row.by_criterion[c.name] > 0}


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
