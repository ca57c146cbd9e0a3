"""A stored study's task, found from another folder than it was made in: its record has paths as they were spelled.

They are looked for here first, then in the folder that the record says. A message names the record and the setting:
no flag was given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colever.errors import TaskError

if TYPE_CHECKING:
    from colever.config import SweepConfig
    from colever.optimizers.study import StudyFolder
    from colever.tasks.task import Task

PLACED = ("task", "data", "rubric")  # settings that may be paths


@contextlib.contextmanager
def where_made(config: SweepConfig, place: str) -> Iterator[None]:
    """In the folder ``place`` ("": not known), where this one lacks a file that the settings name."""
    elsewhere = bool(_lacking(config)) and os.path.isdir(place)
    with contextlib.chdir(place) if elsewhere else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def named_in(file: Path, config: SweepConfig, place: str = "") -> Iterator[None]:
    """What is wrong with a task that is loaded here is said of the record ``file``. Raises TaskError."""
    try:
        yield
    except TaskError as error:
        text = str(error).replace("--data ", "data: ")
        if lacking := _lacking(config):
            there = f", nor in {place}, where it was made" if place else ""
            text += f" ({', '.join(lacking)}: not found from this folder{there}; accepted: a folder from which it is)"
        raise TaskError(f"{file}: {text}") from error


def task_of(folder: StudyFolder, rubric: str | None = None, *, unchanged: bool = False) -> Task:
    """The task of a study, scored by the file ``rubric`` where one is given.

    Raises TaskError where it cannot be loaded, or, if it has to be ``unchanged``, is not the one that the study ran on.
    """
    from colever.loading import load_config
    from colever.tasks.load import load_task
    from colever.tasks.rubric_file import with_rubric

    file = folder.file("config.yaml")
    config, state = load_config(file), folder.state()
    if rubric is not None:
        config = config.model_copy(update={"rubric": None})
    place = state.place if state else ""
    with where_made(config, place):
        with named_in(file, config, place):
            task = load_task(config.task, config.data, config.rubric)
        if unchanged and (state is None or task.digest() != state.grounds.task):
            raise TaskError(f"task {task.name!r} is not the one that study {folder.name!r} was run on")
    return task if rubric is None else with_rubric(task, rubric)


def _lacking(config: SweepConfig) -> list[str]:
    """``rubric: strict.toml`` of each file that is not there; data may be a name of the hub, and then counts too."""
    found = []
    for key in PLACED:
        value = getattr(config, key)
        path = value if key != "task" else _file_of(value)
        if path and not Path(path).exists():
            found.append(f"{key}: {value}")
    for name, _, rows in (entry.partition("=") for entry in config.elsewhere or ()):
        if not all(Path(path).exists() for path in (_file_of(name), rows) if path):
            found.append(f"elsewhere: {name}{'=' * bool(rows)}{rows}")
    return found


def _file_of(task: str) -> str:
    """The file of ``my_task.py:task``; "" of a task that has a name."""
    file = task.rpartition(":")[0] or task
    return file if file.endswith(".py") else ""
