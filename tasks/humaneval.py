"""``humaneval``: complete a Python function so that its unit tests pass; rows in HumanEval's form. A skill.

The programs run in the sandbox (docs/sandbox.md), apart from their tests. The rows are not shipped: they come from a
local file, or from the hub (where ``test`` is all there is). A quarter of them is train, a quarter dev, half test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.unit_tests import UnitTests
from colever.tasks.data import KINDS, Row, Rows, Source, read_rows
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task

SOURCE = Source("openai/openai_humaneval", ("task_id", "prompt", "canonical_solution", "test", "entry_point"))


class Complete(dspy.Signature):
    """Complete the Python function. Reply with the whole function."""

    prompt: str = dspy.InputField()
    code: str = dspy.OutputField()


def program() -> dspy.Module:
    return dspy.Predict(Complete)


TESTS = UnitTests("code", setup="prompt")


def passes_all(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return TESTS.verdict(example, prediction).clean


def example(row: Row) -> dspy.Example:
    """``code``, the right answer, is what a labelled demo shows. Raises TaskError for a field that is no text."""
    if wrong := [name for name in SOURCE.fields if not isinstance(row[name], str)]:
        raise TaskError(f"humaneval: row {row['task_id']!r} has no text in {', '.join(wrong)}")
    kept = {name: row[name] for name in ("prompt", "test", "entry_point")}
    code = row["prompt"] + row["canonical_solution"]
    return dspy.Example(id=row["task_id"], code=code, **kept).with_inputs("prompt")


def rows_of(data: str | Path | None) -> Rows:
    """The ``test`` rows of a file or a folder, or of the hub where ``data`` is none. Raises TaskError."""
    if data is None or Path(data).exists() or Path(data).suffix in (*KINDS, ".gz"):
        return read_rows(SOURCE, data, "test")
    return read_rows(replace(SOURCE, hub=str(data)), None, "test")


def task(data: str | Path | None = None, seed: int = 0) -> Task:
    """On the rows of ``data`` (unless said, of HumanEval on the hub), shuffled by ``seed``. Raises TaskError."""
    read = rows_of(data)
    examples = [example(row) for row in read.rows]
    examples = Random(seed).sample(examples, len(examples))
    quarter = len(examples) // 4
    return Task(
        name="humaneval",
        program=program,
        train=examples[:quarter],
        dev=examples[quarter : 2 * quarter],
        test=examples[2 * quarter :],
        rubric=Rubric([Criterion("tests", TESTS, hint="the function does not pass its unit tests")]),
        gold=passes_all,
        depends_on=[data] if data is not None and Path(data).is_file() else (),
        instructions={
            "self": [
                "Write the function that the signature and the docstring ask for.",
                "Finish this Python function. Mind empty input and other edge cases.",
                "Give correct Python code for the prompt, in one fenced block.",
            ]
        },
        max_tokens=512,
        origin=read.origin,
    )
