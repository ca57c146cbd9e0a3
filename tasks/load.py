"""From a name or ``file.py:attribute`` to a validated task."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib import import_module
from pathlib import Path

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.bound import strange_predictor
from colever.tasks.rubric_file import with_rubric
from colever.tasks.task import SPLITS, Task
from colever.types import digest_of

BUNDLED = {
    "arithmetic": "chains of operations, worked then checked by a second predictor: a skill",
    "lookup": "an agent that calls a tool over a small knowledge base, one or two hops: both",
    "routing": "a ticket's topic, mapped to a team by an arbitrary code book: knowledge",
}
LONG = {"explore": "a walk through a town in search of a pet, by 4 to 100 calls of a tool"}  # not among all
PUBLISHED = {
    "banking77": "a bank customer's message and its intent, of 77; banking77-5: the 5 most frequent, routed to teams",
    "gsm8k": "grade-school word problems",
    "hover": "claims whose evidence is found in four hops over a corpus",
    "humaneval": "Python functions to be completed, checked by unit tests in a sandbox",
    "papillon": "a private query, answered with an untrusted model's help; needs a judge (docs/judges.md)",
}  # whose rows come from --data or the hub
SMALLEST_SPLIT = 2


def load_task(name: str, data: str | None = None, rubric: str | None = None) -> Task:
    """A bundled task by name, the attribute of a Python file given as ``file.py:attribute``, or ``verifiers:ID``.

    ``data`` is the file or folder with a published task's rows; None: the hub. In a Python file a function of one
    argument, ``data``, may make the task. ``rubric``: a file whose criteria stand in for the task's own. Raises
    TaskError that names what is wrong and what would be accepted.
    """
    task = _named(name, data)
    check_task(task)
    return task if rubric is None else with_rubric(task, rubric)


def _named(name: str, data: str | None) -> Task:
    published, _, size = name.partition("-")
    if name in BUNDLED | LONG:
        if data is not None:
            raise TaskError(f"--data {data}: task {name!r} makes its own rows; accepted: with {', '.join(PUBLISHED)}")
        task: Task = import_module(f"colever.tasks.{name}").task
        return task
    if name in PUBLISHED:
        made: Task = import_module(f"colever.tasks.{name}").task(data)
        return made
    if published == "banking77" and size.isdecimal():
        restricted: Task = import_module("colever.tasks.banking77").restricted(data, int(size))
        return restricted
    if name.startswith("verifiers:"):
        return _from_verifiers(name.removeprefix("verifiers:"), data)
    if ":" in name or name.endswith(".py"):
        return _from_file(name, data)
    raise TaskError(
        f"unknown task {name!r}; accepted: {', '.join([*BUNDLED, *LONG, *PUBLISHED])}, a file as my_task.py:task, "
        "or verifiers:ID"
    )


def _from_verifiers(identity: str, data: str | None) -> Task:
    if data is not None:
        raise TaskError(f"--data {data}: verifiers:{identity} has its own rows; accepted: with {', '.join(PUBLISHED)}")
    carried: Task = import_module("colever.tasks.verifiers_task").from_verifiers(identity)
    return carried


def _from_file(name: str, data: str | None) -> Task:
    file, _, attribute = name.partition(":")
    path, attribute = Path(file), attribute or "task"
    if not path.is_file():
        raise TaskError(f"task file {file!r} does not exist; accepted: path/to/file.py:attribute")
    module_name = f"colever_user_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task file {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # a task may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise TaskError(f"task file {file} raised {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        tasks = [k for k, v in vars(module).items() if isinstance(v, Task)]
        raise TaskError(f"task file {file} has no {attribute!r}; tasks in it: {', '.join(tasks) or 'none'}")
    made = callable(found) and not isinstance(found, Task)
    takes_data = made and "data" in inspect.signature(found).parameters
    if data is not None and not takes_data:
        raise TaskError(f"--data {data}: {file}:{attribute} takes none; accepted: a function with an argument data")
    try:
        task = (found(data=data) if takes_data else found()) if made else found
    except Exception as error:
        raise TaskError(f"{file}:{attribute} raised {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"{file}:{attribute} is a {type(task).__name__}; accepted: a colever.Task or a function that returns one"
        )
    return task


def check_task(task: Task) -> None:
    """Raises TaskError if the task's program, splits or wordings cannot be used."""
    try:
        program = task.program()
    except Exception as error:
        raise TaskError(f"program of task {task.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(program, dspy.Module):
        raise TaskError(f"program of task {task.name!r} returns a {type(program).__name__}; accepted: a dspy.Module")
    predictors = dict(program.named_predictors())
    if not predictors:
        raise TaskError(f"program of task {task.name!r} has no predictors: there is nothing to optimize")
    if unknown := set(task.instructions) - set(predictors):
        raise TaskError(
            f"instructions of task {task.name!r} name {sorted(unknown)}; its predictors are {sorted(predictors)}"
        )
    for criterion in task.rubric.criteria:
        if found := strange_predictor(criterion, predictors):
            raise TaskError(
                f"criterion {criterion.name!r} of task {task.name!r}: {found[0]} names the predictor {found[1]!r}, "
                f"which is none of the program's; accepted: {', '.join(predictors)}"
            )
    if not 0 < task.target <= 1:
        raise TaskError(f"target of task {task.name!r} is {task.target}; accepted: a number in (0, 1]")
    for file in task.depends_on:
        if not Path(file).is_file():
            raise TaskError(
                f"depends_on of task {task.name!r}: {file} is no file; accepted: paths of files, not folders"
            )
    seen: dict[str, str] = {}
    for split in (*SPLITS, *task.watched):
        _check_split(task, split, seen)


def _check_split(task: Task, split: str, seen: dict[str, str]) -> None:
    try:
        rows = task.examples(split)
    except (TypeError, AttributeError) as error:
        raise TaskError(f"split {split!r} of task {task.name!r} is not a list of dspy.Example: {error}") from error
    if len(rows) < SMALLEST_SPLIT:
        raise TaskError(
            f"split {split!r} of task {task.name!r} has {len(rows)} example(s); at least {SMALLEST_SPLIT} are needed "
            f"for an interval{f' (rows of {task.origin})' if task.origin else ''}"
        )
    ids = [i for i, _ in rows]
    if len(set(ids)) < len(ids):
        raise TaskError(
            f"split {split!r} of task {task.name!r} repeats the id {next(i for i in ids if ids.count(i) > 1)!r}"
        )
    for example_id, example in rows:
        if not isinstance(example, dspy.Example) or not example._input_keys:
            raise TaskError(
                f"row {example_id!r} of split {split!r} is not a dspy.Example with inputs; "
                "use dspy.Example(...).with_inputs(...)"
            )
        _check_fields(task, split, example_id, example)
        content = repr(sorted(example.inputs().toDict().items()))
        if (other := seen.setdefault(content, split)) != split:
            raise TaskError(f"row {example_id!r} of split {split!r} is also in split {other!r} of task {task.name!r}")


def _check_fields(task: Task, split: str, example_id: str, example: dspy.Example) -> None:
    """Each field is JSON: the task's digest is made of it, and a field may become a demo."""
    for name, value in example.toDict().items():
        try:
            digest_of(value)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"row {example_id!r} of split {split!r} of task {task.name!r}: field {name!r} is not JSON: {error}; "
                "accepted: text, numbers, bools, None, and lists and dicts of these"
            ) from None
