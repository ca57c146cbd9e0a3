"""A user's own optimizer as a way: ``prompt.way=module:attr`` or ``file.py:attr``.

``attr`` is a ``dspy.Teleprompter`` class, a function that returns one, or one that is made already. A class or function
is called with those of ``metric``, ``prompt_model``, ``num_threads``, ``seed`` and ``max_errors`` that it takes; one
that is made gets the rubric as its ``metric``. Its ``compile`` gets the student and those of ``trainset``, ``valset``
and ``seed`` that it takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from colever.config import PROMPT_WAYS, PromptSettings
from colever.errors import UsageError
from colever.optimizers.ways.bootstrap import ONE_ERROR, student_of, threads_for
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.source import contents_digest
from colever.tasks.task import Task
from colever.types import Candidate


class UsersTeleprompter:
    """Whatever the user's class does, its rollouts are the rehearsal's: scored by the rubric, counted, capped."""

    def __init__(self, name: str) -> None:
        module, self.made_by = _found(name)
        self.name = name
        self.needs_proposer = callable(self.made_by) and "prompt_model" in _takes(self.made_by)
        self.digest = contents_digest(_sources(module, self.made_by))  # another text is another optimizer

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        """Nothing is known of what it needs."""

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """Nobody can say what it takes: as much as ``prompt.rollouts``, which it should keep to."""
        return Calls(settings.rollouts)

    def search(self, pulling: Pulling) -> Found:
        offered = {
            "metric": pulling.rehearsal.metric,
            "prompt_model": pulling.proposer,
            "num_threads": threads_for(pulling),
            "max_errors": ONE_ERROR,
            "seed": pulling.seed,
        }
        optimizer = self.made_by
        if not isinstance(optimizer, Teleprompter):
            optimizer = optimizer(**_of(offered, _takes(optimizer)))
            if not isinstance(optimizer, Teleprompter):
                raise UsageError(
                    f"prompt.way={self.name} returned a {type(optimizer).__name__}; accepted: a Teleprompter"
                )
        elif hasattr(optimizer, "metric"):
            optimizer.metric = offered["metric"]
        sets = {
            "trainset": pulling.examples("shown"),
            "valset": pulling.examples("scored"),
            "seed": pulling.seed,
        }
        best = optimizer.compile(student_of(pulling), **_of(sets, _takes(optimizer.compile)))
        if not isinstance(best, dspy.Module):
            raise UsageError(f"prompt.way={self.name}: compile returned a {type(best).__name__}; accepted: the program")
        return Found(pulling.rehearsal.prompts_of(best), f"what {self.name} made")


def _found(name: str) -> tuple[Any, Any]:
    """The module and its attribute. Raises UsageError where the name is no way and leads to nothing."""
    module, colon, attr = name.rpartition(":")
    if not colon or not module or not attr:
        raise UsageError(
            f"prompt.way: unknown way {name!r}; accepted: {', '.join(PROMPT_WAYS)}, or your own teleprompter as "
            "module:attr or file.py:attr"
        )
    try:
        loaded = _from_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        found = getattr(loaded, attr)
    except (Exception, SystemExit) as error:  # the boundary to the user's file
        raise UsageError(f"prompt.way={name}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Teleprompter) and not callable(found):
        raise UsageError(
            f"prompt.way={name} is a {type(found).__name__}; accepted: a dspy.Teleprompter, its class, or a function"
        )
    return loaded, found


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"colever_user_way_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and inspect look there
    spec.loader.exec_module(module)
    return module


def _sources(module: Any, found: Any) -> set[str]:
    """The files that say what the optimizer is: the one that was named, and the one that defines it."""
    made = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    defined = sys.modules.get(made.__module__)
    files = {getattr(m, "__file__", None) for m in (module, defined)}
    return {file for file in files if file and Path(file).is_file()}


def _takes(function: Any) -> set[str]:
    """Names of its parameters; where it takes any, the one that it can't do without beside them."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return set(parameters) | {"metric", "trainset"}
    return set(parameters)


def _of(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
