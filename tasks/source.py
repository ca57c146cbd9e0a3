"""Digests of Python code: of functions by bytecode, of programs by source and signatures. Stable across processes."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import dspy

from colever.types import digest_of

_LIBRARIES = {"dspy", "builtins", "pydantic", "typing", "functools"}
_RANDOM = {"stage"}  # dspy.Predict draws it anew in every process
_PLAIN = (str, int, float, bool, bytes, type(None))


def code_digest(function: Any) -> str:
    """Of a callable's bytecode, constants, names, defaults and closure; a callable object's attributes count too."""
    return digest_of(_describe(function, set()))


def program_digest(program: dspy.Module) -> str:
    """Of a program's class source, its plain attributes and its predictors' signatures."""
    kind = type(program)
    try:
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
    plain = {k: repr(v) for k, v in sorted(vars(program).items()) if isinstance(v, _PLAIN) and k not in _RANDOM}
    return digest_of([kind.__qualname__, source, predictors, plain])


def files_digest(*objects: Any) -> str:
    """Of the source files that define functions, classes or modules' classes: what they call there counts too.

    A comment changed in such a file changes the digest; the other way round a stale round might be reused.
    """
    kinds: set[Any] = set()
    for thing in objects:
        if isinstance(thing, dspy.Module):
            kinds |= {kind for _, module in thing.named_sub_modules() for kind in type(module).__mro__}
        else:
            kinds.add(inspect.unwrap(getattr(thing, "func", thing)))
    files = {}
    for kind in kinds:
        module = getattr(kind, "__module__", None) or ""
        if module.split(".")[0] not in _LIBRARIES and (file := _source_file(kind)) is not None:
            files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digest_of(files)


def _source_file(kind: Any) -> Path | None:
    try:
        return Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return None


def _describe(value: Any, seen: set[int]) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in seen:
        return "again"
    seen = seen | {id(value)}
    if isinstance(value, tuple | list):
        return [_describe(v, seen) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_describe(v, seen)) for v in value)
    if isinstance(value, dict):
        return sorted([str(_describe(k, seen)), str(_describe(v, seen))] for k, v in value.items())
    if inspect.iscode(value):
        return [value.co_code.hex(), _describe(value.co_consts, seen), list(value.co_names)]
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = [c.cell_contents for c in (value.__closure__ or ())]
        return [_describe(code, seen), _describe(value.__defaults__ or (), seen), _describe(cells, seen)]
    if inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return getattr(value, "__qualname__", value.__name__)
    called = vars(type(value)).get("__call__")
    state = getattr(value, "__dict__", {})
    return [type(value).__qualname__, _describe(getattr(called, "__code__", None), seen), _describe(state, seen)]
