"""Digests of a task's code and of the data that it has loaded. Stable across processes and places.

Bytecode where a function is handed over, whole source files where it is defined: a comment changed in such a file
changes the digest; the other way round a stale round might be reused.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import dspy

from colever.tasks.description import describe, is_own, source_file
from colever.types import digest_of

_LIBRARIES = {"dspy", "builtins", "pydantic", "typing", "functools"}
_PARSING = threading.Lock()  # Python 3.11 parses in one thread at a time, or raises SystemError
_USER_TASK = "colever_user_task_"  # the prefix under which load.py imports a task's file


@dataclass(frozen=True)
class SourceFile:
    """A file of the task's code: its module's name, and the folder from which its imports are followed, if any."""

    name: str
    path: Path
    root: Path | None


def code_digest(function: Any) -> str:
    """Of a callable's bytecode, constants, names, defaults and closure; a callable object's attributes count too."""
    return describe(function)


def source_digest(program: dspy.Module, functions: Sequence[Any]) -> str:
    """Of a program and the functions beside it (its factory, criteria, gold): their sources and what they read.

    Counted are: the program's class, attributes and signatures, sub-modules included; the files that define the
    classes and functions; the files that these import from the task's own folder; and the module-level values that
    the code names.
    """
    things = [program, *functions]
    files = list(_files(things))
    roots = sorted({f.root for f in files if f.root is not None}, key=lambda root: (-len(root.parts), str(root)))
    sources = sorted({(f.name, hashlib.sha256(f.path.read_bytes()).hexdigest()) for f in _with_imports(files)})
    named = {key: describe(value, roots) for key, value in _globals(things).items()}
    return digest_of([_program(program, roots), sources, named])


def contents_digest(files: Iterable[Path | str]) -> str:
    """Of files' names and contents, wherever they lie. Raises OSError for one that cannot be read."""
    return digest_of(sorted((Path(f).name, hashlib.sha256(Path(f).read_bytes()).hexdigest()) for f in files))


def _program(program: dspy.Module, roots: Sequence[Path]) -> Any:
    kind = type(program)
    try:
        with _PARSING:  # the source of a class is found by parsing its file
            source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = code_digest(kind.forward) if hasattr(kind, "forward") else kind.__qualname__
    predictors = [
        [
            name,
            p.signature.instructions,
            [
                [n, str(f.annotation), f.json_schema_extra and {k: str(v) for k, v in f.json_schema_extra.items()}]
                for n, f in p.signature.fields.items()
            ],
        ]
        for name, p in program.named_predictors()
    ]
    return [kind.__qualname__, source, predictors, describe(program, roots)]


# --- source files ----------------------------------------------------------------------------------


def _kinds(thing: Any) -> list[Any]:
    """The classes and functions behind a program, a function, or a callable object."""
    if isinstance(thing, dspy.Module):
        return [kind for _, module in thing.named_sub_modules() for kind in type(module).__mro__]
    if isinstance(thing, functools.partial):
        return [kind for part in (thing.func, *thing.args, *thing.keywords.values()) for kind in _kinds(part)]
    if inspect.ismethod(thing):
        return [*_kinds(thing.__func__), *_kinds(thing.__self__)]
    if inspect.isclass(thing):
        return [*thing.__mro__]
    inner = inspect.unwrap(thing) if callable(thing) else thing
    kinds = [kind for kind in (thing, inner) if inspect.isfunction(kind)]
    return kinds or [*type(thing).__mro__]


def _is_users(kind: Any) -> bool:
    """Own code that no version stands for: neither an installed library's nor Colever's."""
    module = kind.__name__ if inspect.ismodule(kind) else getattr(kind, "__module__", None) or ""
    return is_own(kind) and module.split(".")[0] != "colever"


def _files(things: Iterable[Any]) -> Iterator[SourceFile]:
    for kind in (kind for thing in things for kind in _kinds(thing)):
        module = getattr(kind, "__module__", None) or ""
        if module.split(".")[0] in _LIBRARIES or (path := source_file(kind)) is None:
            continue
        depth = module.count(".") + (path.name == "__init__.py")
        root = path.parents[min(depth, len(path.parents) - 1)] if depth else path.resolve().parent
        yield SourceFile(module.removeprefix(_USER_TASK), path, root if _is_users(kind) else None)


def _with_imports(files: Iterable[SourceFile]) -> set[SourceFile]:
    """The files and every one that they import from their own root, found on disk: what else is loaded is no matter."""
    found: set[SourceFile] = set()
    left = list(files)
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        if file.root is not None:
            left += [f for name in _imported(file) for f in _resolve(file.root, name)]
    return found


def _imported(file: SourceFile) -> Iterator[str]:
    """Dotted names of what a file may import; ``from a import b`` may mean the module ``a.b``."""
    try:
        with _PARSING:
            tree = ast.parse(file.path.read_bytes())
    except (SyntaxError, ValueError):  # never imported, then
        return
    package = file.name.split(".") if file.path.name == "__init__.py" else file.name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _resolve(root: Path, name: str) -> Iterator[SourceFile]:
    """The files of a module and of the packages that hold it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:end])
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                yield SourceFile(".".join(parts[:end]), path, root)


# --- values that the code names --------------------------------------------------------------------


def _globals(things: Iterable[Any]) -> dict[str, Any]:
    """``module.name → value`` for the module-level data that the user's functions name, and those that they name.

    A name that a function assigns anew (``global count``) is the code's memory, not its data, and left out.
    """
    found: dict[str, Any] = {}
    left: list[Any] = [kind for thing in things for kind in _kinds(thing)]
    seen: set[int] = set()
    while left:
        kind = left.pop()
        if id(kind) in seen or not _is_users(kind):
            continue
        seen.add(id(kind))
        for module, name, value in (named for function in _functions(kind) for named in _named(function)):
            if inspect.isclass(value) or inspect.isfunction(value):
                left += _kinds(value)
                continue
            found[f"{module.removeprefix(_USER_TASK)}.{name}"] = value
            left += _kinds(value) if callable(value) else []
    return found


def _functions(kind: Any) -> Iterator[FunctionType]:
    """A function, or the functions of a class."""
    if inspect.isfunction(kind):
        yield kind
    for part in vars(kind).values() if inspect.isclass(kind) else ():
        for function in (getattr(part, "fget", None), getattr(part, "__func__", None), part):
            if inspect.isfunction(function):
                yield inspect.unwrap(function)


def _named(function: FunctionType) -> Iterator[tuple[str, str, Any]]:
    """(module, name, value) of each global that a function names, or finds in a module of the user's (``kb.FACTS``)."""
    loaded, assigned, any_name = _names(function)
    spaces: list[tuple[dict[str, Any], set[str]]] = [(function.__globals__, loaded - assigned)]
    entered: set[int] = set()
    while spaces:
        space, names = spaces.pop()
        entered.add(id(space))
        for name in sorted(names & space.keys()):
            value = space[name]
            if not inspect.ismodule(value):
                yield str(space.get("__name__", "")), name, value
            elif _is_users(value) and id(vars(value)) not in entered:
                spaces.append((vars(value), any_name))


def _names(function: FunctionType) -> tuple[set[str], set[str], set[str]]:
    """The globals that a function and those inside it read, those that they assign, and every name and attribute."""
    loaded, assigned, every = set[str](), set[str](), set[str]()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if inspect.iscode(c)]
        every |= set(code.co_names)
        for step in dis.get_instructions(code):
            loaded |= {step.argval} if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else set()
            assigned |= {step.argval} if step.opname == "STORE_GLOBAL" else set()
    ours = {name for name in every if not name.startswith("__")}
    return loaded & ours, assigned, ours


def files_beside(file: Path) -> list[tuple[str, Path]]:
    """(path below its folder, file) of a Python file and of every one that it imports from its own folder."""
    root = file.resolve().parent
    found = _with_imports([SourceFile(file.stem, file.resolve(), root)])
    return sorted((f.path.relative_to(root).as_posix(), f.path) for f in found)
