"""Labelled answers, and bad ones made of them, as a policy that is lazy, careless or cheating might write them.

Knows a task's examples, the output fields of its program and how DSPy reads a field; scores nothing and asks no model.
A field that a predictor writes is read as the adapter would read it, after at most ``max_tokens`` words of that
predictor's answer; where it cannot be read, the answer is a policy failure, as it would be in a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.adapters.utils import parse_value

from colever.errors import TaskError
from colever.pipelines.plain import plain
from colever.tasks.task import Task
from colever.types import Completion, Step

WORDS = 3000  # that follow a right answer in a very long one
Change = Callable[[Any], Any]  # a field's value → text to be read as that field, or a value as it is


@dataclass(frozen=True)
class Answer:
    """One prediction with the steps that might have made it; ``failure``: why there is no prediction."""

    example: dspy.Example
    prediction: dspy.Prediction
    steps: tuple[Step, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Labels:
    """The labelled answers of a split's first examples; ``empty``: fields that no label tells, left empty.

    ``whole``: the task has made the answers, or labels tell all that the program's predictors write.
    """

    answers: Sequence[Answer]
    empty: tuple[str, ...] = ()
    whole: bool = True


def labelled_answers(task: Task, split: str, limit: int | None = None) -> Labels:
    """What the task's ``labelled`` makes, else its program's output fields by the labels of the same names.

    Raises TaskError where neither tells anything.
    """
    writer, rows = _Writer(task), [example for _, example in task.examples(split)[:limit]]
    if task.labelled is not None:
        made = [_labelled(task, example) for example in rows]
        return Labels([writer.answer(e, dict(p.items())) for e, p in zip(rows, made, strict=True)])
    known = {name for example in rows for name in example.labels().toDict()} & set(writer.fields)
    if not known:
        raise TaskError(
            f"task {task.name!r}: no label has the name of an output field ({', '.join(writer.fields)}): give the task "
            "labelled=, a function from an example to a right dspy.Prediction"
        )
    empty = tuple(name for name, kind in writer.fields.items() if name not in known and kind is str)
    blank = dict.fromkeys(empty, "")
    values = [{**blank, **{k: v for k, v in e.labels().toDict().items() if k in known}} for e in rows]
    whole = not empty and all(writer.fields.keys() <= v.keys() for v in values)
    return Labels([writer.answer(e, v) for e, v in zip(rows, values, strict=True)], empty, whole)


BAD = {  # in the order in which they are shown
    "empty": "nothing at all",
    "in prose": "the right answer in a wrong format: wrapped in prose",
    "wrong": "a wrong answer in the right format: another example's",
    "very long": f"the right answer, then {WORDS:,} words",
    "question": "a copy of the question",
    "rubric": "a copy of the rubric's text",
    "empty texts": "another example's answer, its texts empty",
    "question in texts": "another example's answer, its texts a copy of the question",
    "rubric in texts": "another example's answer, its texts a copy of the rubric's",
}
IN_TEXTS = {"empty": "empty texts", "question": "question in texts", "rubric": "rubric in texts"}


def bad_answers(task: Task, labelled: Sequence[Answer]) -> dict[str, list[Answer]]:
    """By what is bad about them; ``wrong`` holds only those for which another example's answer is a wrong one.

    Where a whole answer cannot be read, as text for a number cannot, the texts beside a wrong number are tried too.
    """
    writer, rubric = _Writer(task), rubric_text(task)
    made: dict[str, list[Answer]] = {name: [] for name in BAD}
    for place, right in enumerate(labelled):
        other = _wrong(task, right, (labelled[i % len(labelled)] for i in range(place + 1, place + len(labelled))))
        wrong = None if other is None else dict(other.prediction.items())
        if wrong is not None:
            made["wrong"].append(writer.answer(right.example, wrong))
        for kind, change in _changes(right.example, rubric).items():
            answer = writer.changed(right.example, dict(right.prediction.items()), change)
            made[kind].append(answer)
            if answer.failure and wrong is not None and kind in IN_TEXTS and any(map(writer.is_text, wrong)):
                made[IN_TEXTS[kind]].append(writer.changed(right.example, wrong, change, texts_only=True))
    return made


def _changes(example: dspy.Example, rubric: str) -> dict[str, Change]:
    question = "\n".join(str(plain(v)) for v in example.inputs().toDict().values())
    return {
        "empty": lambda value: "",
        "in prose": lambda value: f"Let me think. I am sure that it is {value}, and I hope this helps.",
        "very long": lambda value: f"{value}" + " and so on" * (WORDS // 3) if type(value) is str else value,
        "question": lambda value: question,
        "rubric": lambda value: rubric,
    }


def rubric_text(task: Task) -> str:
    """Names and hints of the task's criteria: what a policy that has seen the rubric might repeat."""
    return "\n".join(f"{c.name}: {c.hint or 'full marks'}" for c in task.rubric.criteria)


def _labelled(task: Task, example: dspy.Example) -> dspy.Prediction:
    assert task.labelled is not None
    try:
        made = task.labelled(example)
    except Exception as error:  # the boundary to the task's own code
        raise TaskError(f"labelled of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, dspy.Prediction):
        raise TaskError(f"labelled of task {task.name!r} returned a {type(made).__name__}; accepted: a dspy.Prediction")
    return made


def _wrong(task: Task, right: Answer, others: Iterable[Answer]) -> Answer | None:
    """The next answer that is another one, and wrong here where gold can tell."""
    mine = dict(right.prediction.items())
    for other in others:
        if dict(other.prediction.items()) != mine and not _is_right(task, right.example, other.prediction):
            return other
    return None


def _is_right(task: Task, example: dspy.Example, prediction: dspy.Prediction) -> bool:
    try:
        return bool(task.gold_of(example, prediction))
    except TaskError:  # told where the answer is scored
        return False


class _Writer:
    """Writes predictions as the program's predictors would."""

    def __init__(self, task: Task) -> None:
        self.max_tokens = task.max_tokens
        self.predictors = {name: p.signature for name, p in task.program().named_predictors()}
        outputs = [s.output_fields for s in self.predictors.values()]
        self.fields = {name: field.annotation for by_name in outputs for name, field in by_name.items()}

    def answer(self, example: dspy.Example, values: Mapping[str, Any]) -> Answer:
        """A prediction with these values, none of them read."""
        return Answer(example, dspy.Prediction(**values), tuple(self._steps(example, values, values)))

    def is_text(self, name: str) -> bool:
        """Whether a predictor writes the field, and any text is accepted in it."""
        return self.fields.get(name) is str

    def changed(
        self, example: dspy.Example, right: Mapping[str, Any], change: Change, texts_only: bool = False
    ) -> Answer:
        """The values, each (or each text) changed and read anew; a failure at the first that cannot be read."""
        kept = [name for name in right if texts_only and not self.is_text(name)]
        written = self._cut({name: v if name in kept else change(v) for name, v in right.items()}, right)
        values: dict[str, Any] = {}
        for name, text in written.items():
            if text is None:
                return Answer(example, dspy.Prediction(), failure=f"cut off before {name}")
            if text is right[name] or not isinstance(text, str):
                values[name] = text
                continue
            try:
                values[name] = _read(text, self.fields.get(name), right[name])
            except Exception as error:  # noqa: BLE001 - the boundary to DSPy's reader, as in its adapters
                return Answer(example, dspy.Prediction(), failure=f"{name} cannot be read: {type(error).__name__}")
        return Answer(example, dspy.Prediction(**values), tuple(self._steps(example, values, written)))

    def _cut(self, written: dict[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
        """Each predictor's fields within ``max_tokens`` words; None for a field that comes too late."""
        cut = dict(written)
        for signature in self.predictors.values():
            left = self.max_tokens
            for name in (n for n in signature.output_fields if n in written):
                words = str(written[name]).split()
                if left <= 0:
                    cut[name] = None
                elif len(words) > left and written[name] is not right[name]:
                    cut[name] = " ".join(words[:left])
                left -= len(words)
        return cut

    def _steps(self, example: dspy.Example, values: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[Step]:
        """One step of each predictor whose fields the prediction has: words for tokens, no ids."""
        known = {**example.inputs().toDict(), **values}
        for predictor, signature in self.predictors.items():
            names = [name for name in signature.output_fields if name in values]
            if not names:
                continue
            text = "\n\n".join(f"[[ ## {name} ## ]]\n{written[name]}" for name in names)
            asked = {name: plain(known[name]) for name in signature.input_fields if name in known}
            said = {name: plain(values[name]) for name in names}
            completion = Completion(text, (), (), (), "stop", "", counted=(0, len(text.split())))
            yield Step(predictor, 0, completion, False, asked, said)


def _read(text: str, annotation: Any, right: Any) -> Any:
    """The text as the field's type; of a field that no predictor writes, as the right value's type."""
    if annotation is None and isinstance(right, list | tuple):
        return type(right)([text] if text else [])
    return parse_value(text, annotation or type(right))
