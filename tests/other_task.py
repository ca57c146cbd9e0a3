"""A second task for the hand-written engine, as a file: what a study on another task looks at elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from toy import toy_task

from colever.tasks.task import Task

task = replace(toy_task(), name="other", gold=None)


def rows(data: str | None = None) -> Task:
    """On as many dev examples as the file says."""
    return replace(task, dev=task.dev[: int(Path(data).read_text())] if data else task.dev)
