"""``humaneval``: complete a Python function so that its unit tests pass; rows in HumanEval's form. A skill.

The programs run in the sandbox (docs/sandbox.md), apart from their tests. The rows are not shipped: they come from a
local ``.jsonl`` or ``.jsonl.gz`` file, or from the hub. A quarter of them is train, a quarter dev, half test.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.unit_tests import UnitTests
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task

HUB = "openai/openai_humaneval"
FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
LEAST = 8  # rows, so that each split has two


class Complete(dspy.Signature):
    """Complete the Python function. Reply with the whole function."""

    prompt: str = dspy.InputField()
    code: str = dspy.OutputField()


def program() -> dspy.Module:
    return dspy.Predict(Complete)


TESTS = UnitTests("code", setup="prompt")


def passes_all(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return TESTS.verdict(example, prediction).clean


def example(row: dict[str, Any]) -> dspy.Example:
    """``code``, the right answer, is what a labelled demo shows."""
    kept = {name: row[name] for name in ("prompt", "test", "entry_point")}
    code = row["prompt"] + row["canonical_solution"]
    return dspy.Example(id=row["task_id"], code=code, **kept).with_inputs("prompt")


def rows_of(data: str | Path) -> list[dict[str, Any]]:
    """The rows of a file, or of the hub's ``test`` split where ``data`` is no file and no file's name.

    Raises TaskError that names the file and the line at fault, or what is not to be had.
    """
    path = Path(data)
    if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise TaskError(f"humaneval: {path} does not exist as a file; accepted: .jsonl, .jsonl.gz, or a hub id")
        lines, where = _lines(path), str(path)
    else:
        lines, where = _from_hub(str(data)), f"{data} on the hub"
    for number, row in enumerate(lines, 1):
        if missing := [f for f in FIELDS if not isinstance(row, dict) or not isinstance(row.get(f), str)]:
            raise TaskError(f"humaneval: row {number} of {where} has no text in {', '.join(missing)}")
    if len(lines) < LEAST:
        raise TaskError(f"humaneval: {where} has {len(lines)} rows; at least {LEAST} are needed")
    return lines


def _lines(path: Path) -> list[Any]:
    rows: list[Any] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            rows += (json.loads(line) for line in file if line.strip())
    except (OSError, EOFError, ValueError) as error:
        raise TaskError(f"humaneval: {path} cannot be read after row {len(rows)}: {error}") from error
    return rows


def _from_hub(name: str) -> list[Any]:
    from datasets import load_dataset

    try:
        return list(load_dataset(name, split="test"))
    except Exception as error:  # the boundary to the hub's libraries, which share no base
        said = f"{type(error).__name__}: {error}"
        raise TaskError(
            f"humaneval: no rows: {name} is no .jsonl file, and the hub does not give it: {said}"
        ) from error


def task(data: str | Path | None = None, seed: int = 0) -> Task:
    """On the rows of ``data`` (unless said, of HumanEval on the hub), shuffled by ``seed``. Raises TaskError."""
    source = HUB if data is None else data
    examples: Sequence[dspy.Example] = [example(row) for row in rows_of(source)]
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
        depends_on=[source] if Path(source).is_file() else (),
        instructions={
            "self": [
                "Write the function that the signature and the docstring ask for.",
                "Finish this Python function. Mind empty input and other edge cases.",
                "Give correct Python code for the prompt, in one fenced block.",
            ]
        },
        max_tokens=512,
        origin=str(source),
    )
