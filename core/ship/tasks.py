"""A bundle's task: how it is named, what of it is carried, and from the name to the task again.

No code is run that is not installed, unless the user trusts the bundle. Knows tasks; no engines.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
import shutil
import sysconfig
import tempfile
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from colever.errors import StoreError, TaskError
from colever.ship.layout import CODE, RUBRIC, TaskReference, accepted
from colever.ship.opened import Bundle
from colever.tasks.load import BUNDLED, LONG, PUBLISHED, check_task, load_task
from colever.tasks.rubric_file import load_rubric
from colever.tasks.rubric_text import read_tables
from colever.tasks.source import files_beside
from colever.tasks.task import Task

TRUST = "trust_code=True (--trust-code), if you trust whoever made it"


def refer(name: str, data: str | None, task: Task, folder: Path) -> TaskReference:
    """What a bundle says of a task; its file and what that imports from beside it are copied into ``folder``.

    Raises TaskError for files that a bundle can't carry, OSError.
    """
    return TaskReference(
        name=_named(name, folder),
        data=Path(data).name if data else None,
        digest=task.digest(),
        inputs=list(task.examples("train")[0][1].inputs().keys()),
    )


def _named(name: str, folder: Path) -> str:
    file, _, attribute = name.partition(":")
    if not file.endswith(".py"):
        return name
    path, attribute = Path(file).resolve(), attribute or "task"
    if module := _module_of(path):
        return f"{module}:{attribute}"
    for below, source in files_beside(path):
        carried = f"{CODE}/{below}"
        if not accepted(carried):
            raise TaskError(f"{source} cannot be carried in a bundle; accepted: names of letters, digits, _ . and -")
        (folder / carried).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / carried)
    return f"{CODE}/{path.name}:{attribute}"


def _installed() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]


def _module_of(path: Path) -> str:
    """The dotted name of an installed package's file; "" for any other."""
    below = next((path.relative_to(place) for place in _installed() if path.is_relative_to(place)), None)
    return "" if below is None else ".".join(below.with_suffix("").parts)


def task_of(bundle: Bundle, data: str | None = None, trust_code: bool = False, own: bool = False) -> Task:
    """The bundle's task, with the rubric that it has itself. ``own``: see ``open_bundle``.

    Raises TaskError where it is code that is neither installed nor trusted, or cannot be loaded.
    """
    name, said = bundle.manifest.task.name, bundle.manifest.task
    data = data or (said.data if own else None)
    if name in BUNDLED | LONG | PUBLISHED or re.fullmatch(r"banking77-[0-9]{1,2}", name):
        return load_task(name, data)
    file, _, attribute = name.partition(":")
    if file.startswith(f"{CODE}/") and file in bundle.manifest.files:
        if not trust_code:
            raise TaskError(f"{bundle.folder} brings its own task file {file}, which is not run; accepted: {TRUST}")
        return load_task(f"{_set_apart(bundle) / file}:{attribute}", data)
    if name.startswith("verifiers:"):
        if not trust_code:
            raise TaskError(f"{bundle.folder}: {name[:80]!r} runs what that set brings; accepted: {TRUST}")
        return load_task(name, data)
    if own and Path(file).is_absolute() and bundle.folder not in Path(file).resolve().parents:
        return load_task(name, data)
    if file.replace(".", "").isidentifier() and attribute.isidentifier():
        return _from_package(bundle, file, attribute)
    if file.endswith(".py") and bundle.folder in Path(file).resolve().parents:
        raise TaskError(f"{bundle.folder} brings its own task file, which is not run: put it elsewhere and load it")
    known = ", ".join([*BUNDLED, *LONG, *PUBLISHED])
    raise TaskError(
        f"{bundle.folder}: task {name[:80]!r} is not one that a bundle may name; accepted: {known}, a task of an "
        f"installed package as package.module:attr, verifiers:ID or a file in {CODE}/ with {TRUST}"
    )


def _from_package(bundle: Bundle, module: str, attribute: str) -> Task:
    """A ``Task`` object of an installed package: nothing is called, and nothing that lies elsewhere is imported."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])] if spec else []
    if not places or not all(any(Path(p).resolve().is_relative_to(i) for i in _installed()) for p in places):
        raise TaskError(f"{bundle.folder}: package {module[:80]!r} is not installed")
    try:
        found: Any = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise TaskError(f"package {module} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Task):
        raise TaskError(f"{module}:{attribute} is a {type(found).__name__}; accepted in a bundle: a colever.Task")
    check_task(found)
    return found


def with_own_rubric(task: Task, bundle: Bundle, trust_code: bool = False) -> Task:
    """The task scored by the bundle's rubric. Raises TaskError where that names code that is not trusted."""
    if bundle.manifest.rubric is None:
        return task
    file = bundle.folder / RUBRIC
    if not file.is_file():
        raise StoreError(f"{file} is missing")
    for table in read_tables(file):
        if table.values.get("kind") == "python" and not trust_code:
            raise TaskError(f"{file}: criterion {table.values.get('name')!r} is code; accepted: {TRUST}")
        if "://" in str(table.values) and not trust_code:
            raise TaskError(f"{file}: criterion {table.values.get('name')!r} names an address; accepted: {TRUST}")
    return replace(task, rubric=load_rubric(_set_apart(bundle) / RUBRIC if trust_code else file, task))


def _set_apart(bundle: Bundle) -> Path:
    """The bundle's code and rubric in a folder of this process's own: Python writes beside code that it runs."""
    paths = [path for path in bundle.manifest.files if path == RUBRIC or path.startswith(f"{CODE}/")]
    return _copied(bundle.folder, tuple((path, bundle.manifest.files[path].sha256) for path in paths))


@lru_cache(maxsize=16)
def _copied(folder: Path, files: tuple[tuple[str, str], ...]) -> Path:
    to = Path(tempfile.mkdtemp(prefix="colever-code-"))
    atexit.register(shutil.rmtree, to, ignore_errors=True)
    for path, _ in files:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, to / path)
    return to
