"""The judges of a task: which criteria ask language models, and of which name those are that name none.

Knows rubrics and names; a judge's question is its own affair.
"""

from __future__ import annotations

from dataclasses import replace

from colever.engines.bench import Bench
from colever.errors import TaskError
from colever.pipelines.delegate import Delegate
from colever.tasks.criteria.panel import Panel
from colever.tasks.rubric import Rubric
from colever.tasks.task import Task


def judges_of(task: Task) -> dict[str, Panel]:
    """The criteria that ask models, by name."""
    return {c.name: c.check for c in task.rubric.criteria if isinstance(c.check, Panel)}


def with_judge(task: Task, model: str | None) -> Task:
    """The task with ``model`` for every judge that names none. Raises TaskError where there is none to be had."""
    unnamed = [name for name, judge in judges_of(task).items() if not judge.models]
    if not unnamed:
        return task
    if model is None:
        raise TaskError(
            f"criterion {unnamed[0]!r} of task {task.name!r} is a judge without a model; accepted: --set judge.model="
            "openai/gpt-5-mini (or NAME@ADDRESS), or models in the rubric"
        )
    criteria = [
        replace(c, check=c.check.with_model(model)) if isinstance(c.check, Panel) and not c.check.models else c
        for c in task.rubric.criteria
    ]
    return replace(task, rubric=Rubric(criteria))


def open_judges(task: Task, bench: Bench) -> None:
    """Raises UsageError for a model that cannot be asked: a name, a key, an address that does not answer.

    Those that the program delegates to are looked at as well.
    """
    for name, judge in judges_of(task).items():
        for model in judge.models:
            bench.open(model, f"judge {name!r}: model")
    for _, module in task.program().named_sub_modules():
        for name, value in vars(module).items():
            if isinstance(value, Delegate):
                bench.open(value.model, f"program of task {task.name!r}: {name}")
