"""A rubric as data: a TOML or YAML file → the same Rubric that Python would make.

Knows the kinds of criteria and their settings (``colever.tasks.criteria.KINDS``), and how a file names Python of the
user's own (``kind = "python"``) or a criterion that the task has (``kind = "task"``). Every message names the file, the
line, the criterion and the key, and what would be accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from colever.errors import TaskError
from colever.tasks.criteria import KINDS
from colever.tasks.criteria.bound import strange_predictor
from colever.tasks.rubric import Criterion, CriterionFunction, Rubric, fault_of
from colever.tasks.rubric_text import Table, read_tables, refused
from colever.tasks.task import Task

COMMON = ("name", "kind", "weight", "hint", "predictor", "gate", "clip", "stage", "form")
OWN: Mapping[str, tuple[str, ...]] = {"python": ("check",), "task": ("criterion",)}  # kinds that are no class
REFERENCE = "module:attr, or file.py:attr beside the rubric's file"


def load_rubric(file: Path | str, task: Task | None = None) -> Rubric:
    """The rubric that a file describes; ``task``: whose criteria ``kind = "task"`` takes, whose predictors are known.

    Raises TaskError that names the file, the line and the key.
    """
    path = Path(file)
    predictors = None if task is None else [name for name, _ in task.program().named_predictors()]
    reader = _Reader(path, task.rubric if task else None, predictors)
    criteria: dict[str, Criterion] = {}
    tables = dict[str, Table]()
    for table in read_tables(path):
        made = reader.criterion(table)
        if made.name in criteria:
            first = tables[made.name].line_of("name")
            where = f" in line {first}" if first else ""
            raise refused(path, table.line_of("name"), f"criterion {made.name!r} is already there{where}")
        criteria[made.name], tables[made.name] = made, table
    try:
        return Rubric(list(criteria.values()))
    except TaskError as error:  # of all of them together
        raise TaskError(f"{path}: {error}") from None


def with_rubric(task: Task, file: Path | str) -> Task:
    """The task scored by a file's rubric in the place of its own. Raises TaskError."""
    return replace(task, rubric=load_rubric(file, task))


@dataclass(frozen=True)
class _Reader:
    """One file's tables → criteria."""

    file: Path
    of_task: Rubric | None
    predictors: list[str] | None

    def criterion(self, table: Table) -> Criterion:
        values = dict(table.values)
        name, kind = self._text(table, "name"), self._text(table, "kind")
        known = {**OWN, **{k: tuple(f.name for f in dataclasses.fields(c) if f.init) for k, c in KINDS.items()}}
        if kind not in known:
            raise self._error(table, "kind", f"unknown kind {kind!r}{_near(kind, known)}; accepted: {_list(known)}")
        accepted = (*COMMON, *(key for key in known[kind] if key not in COMMON))
        for key in values:
            if key not in accepted:
                raise self._error(table, key, f"unknown key {key!r}{_near(key, accepted)}; accepted: {_list(accepted)}")
        given = {key: _plain(key, values[key]) for key in COMMON[2:] if key in values}
        settings = {key: values[key] for key in known[kind] if key in values}
        made = self._made(table, name, kind, given, settings)
        if fault := fault_of(made):
            raise self._error(table, fault[0], f"{fault[0]} is {_shown(getattr(made, fault[0]))}; accepted: {fault[1]}")
        if self.predictors is not None and (found := strange_predictor(made, self.predictors)):
            key, predictor = found
            near, inside = _near(predictor, self.predictors), "" if key == "predictor" else f"{key}: "
            text = f"predictor {predictor!r} is none of the program's{near}; accepted: {_list(self.predictors)}"
            raise self._error(table, key, inside + text)
        return made

    def _made(
        self, table: Table, name: str, kind: str, given: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Criterion:
        if kind == "task":
            return replace(self._of_task(table, settings.get("criterion", name)), name=name, **given)
        check = self._python(table) if kind == "python" else self._kind(table, KINDS[kind], settings)
        return Criterion(name, check, **given)

    def _of_task(self, table: Table, name: Any) -> Criterion:
        if self.of_task is None:
            raise self._error(table, "kind", "kind 'task' takes a task's criterion, and no task is given")
        known = {c.name: c for c in self.of_task.criteria}
        if name not in known:
            text = f"the task has no criterion {name!r}{_near(str(name), known)}; accepted: {_list(known)}"
            raise self._error(table, "criterion", text)
        return known[name]

    def _kind(self, table: Table, kind: Any, settings: Mapping[str, Any]) -> CriterionFunction:
        """An object of a kind, each setting held beside its annotation."""
        hints = get_type_hints(kind, include_extras=True)
        checked = {key: self._setting(table, key, value, hints[key]) for key, value in settings.items()}
        needed = [f.name for f in dataclasses.fields(kind) if f.init and _needed(f) and f.name not in settings]
        if needed:
            raise self._error(table, "", f"{_list(needed)} is needed by kind {table.values['kind']!r}")
        alone = {key: value for key, value in checked.items() if key not in COMMON}
        refusals: list[Exception] = []
        for given in (checked, *([alone] if alone != checked else [])):  # a common key goes to the kind, if it takes it
            try:
                return kind(**given)
            except (TypeError, ValueError) as error:  # a TaskError too: what a kind refuses by itself
                refusals.append(error)
        text = str(refusals[-1])
        key = next((key for key in settings if key in text), "")
        raise self._error(table, key, text) from refusals[-1]

    def _setting(self, table: Table, key: str, value: Any, annotation: Any) -> Any:
        if _endless(value):
            raise self._error(table, key, f"{key} is {_shown(value)}; accepted: finite numbers")
        try:
            return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            inner = "".join(f"[{part!r}]" for part in first["loc"])
            accepted = first["msg"].replace("Input should be", "accepted:")
            raise self._error(table, key, f"{key}{inner} is {_shown(first['input'])}; {accepted}") from None
        except (TypeError, PydanticUserError):  # what JSON lacks; a type that only Python can give
            raise self._error(table, key, f"{key} is {_shown(value)}, which a file cannot give") from None

    def _python(self, table: Table) -> CriterionFunction:
        reference = table.values.get("check")
        module, colon, name = str(reference).rpartition(":")
        if not isinstance(reference, str) or not colon or not module or not name:
            what = "is needed" if reference is None else f"is {_shown(reference)}"
            raise self._error(table, "check", f"check {what}; accepted: {REFERENCE}")
        try:
            if module.endswith(".py"):
                loaded = _module_of(self.file.parent / module)
            else:
                loaded = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # the boundary to the user's code
            text = f"check {reference!r}: {type(error).__name__}: {error}; accepted: {REFERENCE}"
            raise self._error(table, "check", text) from error
        found = getattr(loaded, name, None)
        if found is None:
            there = [k for k, v in vars(loaded).items() if inspect.isfunction(v) and not k.startswith("_")]
            near = _near(name, there)
            text = f"check {reference!r}: there is no {name!r}{near}; functions in it: {_list(there) or 'none'}"
            raise self._error(table, "check", text)
        if not callable(found) or inspect.isclass(found):
            what = "class" if inspect.isclass(found) else type(found).__name__
            text = f"check {reference!r} is a {what}; accepted: a function of (example, prediction, steps)"
            raise self._error(table, "check", text)
        return found

    def _text(self, table: Table, key: str) -> str:
        value = table.values.get(key)
        if isinstance(value, str) and value.strip():
            return value
        what = "is needed" if key not in table.values else f"is {_shown(value)}"
        known = f", one of {_list((*KINDS, *OWN))}" if key == "kind" else ""
        raise self._error(table, key, f"{key} {what}; accepted: a text{known}")

    def _error(self, table: Table, key: str, text: str) -> TaskError:
        name = table.values.get("name")
        whose = f"criterion {name!r}: " if isinstance(name, str) and name.strip() else ""
        return refused(self.file, table.line_of(key), whose + text)


def _module_of(path: Path) -> ModuleType:
    """The module in a file: the task's own where it is that file, so that its classes are the same ones."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    of_task = sys.modules.get(f"colever_user_task_{path.stem}")
    if of_task is not None and of_task.__file__ and Path(of_task.__file__).resolve() == path.resolve():
        return of_task
    spec = importlib.util.spec_from_file_location(f"colever_user_rubric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # inspect looks there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import what lies beside it, as a task may
    spec.loader.exec_module(module)
    return module


def _plain(key: str, value: Any) -> Any:
    """A common key's value as Criterion takes it; false says that a task's criterion loses its gate or clip."""
    if key in ("gate", "clip") and value is False:
        return None
    return tuple(value) if key == "clip" and isinstance(value, list) else value


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _endless(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(_endless(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def _near(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {found[0]!r}?" if found else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
