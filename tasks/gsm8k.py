"""``gsm8k``: grade-school word problems, one chain of thought to a number (arXiv 2110.14168).

A local file is the training set cut by a fixed seed, or a folder with ``train`` and ``test``, as on the hub: then
test is drawn from test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import dspy

from colever.errors import TaskError
from colever.tasks.data import Row, Source, read_splits
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

SOURCE = Source(
    "openai/gsm8k",
    ("question", "answer"),
    "main",
    published={"17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465": "the published training set"},
)
SIZES = 256, 256, 512  # train, dev, test
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Answer(dspy.Signature):
    """Solve the problem and give the number that it asks for."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def number(text: str) -> float | None:
    """The last number in ``text``, its thousands' commas left out."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def example(row: Row) -> dspy.Example:
    """A row's question, worked solution and number. Raises TaskError where no number follows ``####``."""
    work, mark, final = str(row["answer"]).rpartition("####")
    value = number(final) if mark else None
    if value is None:
        raise TaskError(f"gsm8k: no '#### NUMBER' at the end of the answer {str(row['answer'])[-60:]!r}")
    question = str(row["question"])
    return dspy.Example(question=question, reasoning=work.strip(), answer=final.strip(), value=value).with_inputs(
        "question"
    )


def right(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
    return number(str(prediction.answer)) == example.value


def plain_number(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return NUMBER.fullmatch(str(prediction.answer).strip().removeprefix("$")) is not None


def task(data: Path | str | None = None) -> Task:
    """Raises TaskError where there are no rows, or rows of another form."""
    train, dev, test, origin = read_splits(SOURCE, data, SIZES, example, seed=8)
    return Task(
        name="gsm8k",
        program=answering,
        train=train,
        dev=dev,
        test=test,
        rubric=Rubric([
            Criterion("right", right, 0.9, "the number is not the one that the problem asks for"),
            Criterion("plain_number", plain_number, 0.1, "the answer is one number and nothing else"),
        ]),
        gold=right,
        instructions={"predict": [
            "Work through the problem step by step, then state the final number alone.",
            "Reason in short equations, one for each step, and end with the number.",
        ]},
        max_tokens=512,
        origin=origin,
    )  # fmt: skip


def answering() -> dspy.Module:
    """One chain of thought."""
    return dspy.ChainOfThought(Answer)
