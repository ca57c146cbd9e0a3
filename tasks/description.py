"""Describes any Python value as JSON that is equal in every process: no ids, no order of sets, no folders' places.

Knows plain values, containers, arrays, functions, programs and objects of the user's own classes. Of a library's
object it takes the class's name alone: what lies in a client, a lock or a data frame is not looked into.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from re import Pattern
from types import MappingProxyType
from typing import Any

import dspy

from colever.types import digest_of

_PLAIN = (str, int, float, bool, bytes, type(None))
_PRINTED = (complex, range, Decimal, Fraction, date, time, timedelta, Pattern)  # their repr says all of them
_SETS = (set, frozenset)
_TABLES = (dict, MappingProxyType)
_READABLE = (dspy.Example, dspy.Tool)  # of dspy's classes, those that hold data
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_DRAWN = {"stage", "history", "callbacks"}  # what dspy draws anew in every process, or fills while a program runs


def describe(value: Any, roots: Sequence[Path] = ()) -> str:
    """A digest of ``value``; in its texts the folders ``roots`` are written ``.``, so that a task may be moved."""
    return _Describer(tuple(str(root) for root in roots if len(root.parts) > 1))(value)


def source_file(kind: Any) -> Path | None:
    """The file that defines a class, function or module; None for what is built in or was typed in."""
    try:
        file = Path(inspect.getfile(kind)).absolute()
    except (OSError, TypeError):
        return None
    return file if file.is_file() else None


def is_own(kind: Any) -> bool:
    """Whether a class, function or module is the user's (or Colever's), not an installed library's."""
    name = kind.__name__ if inspect.ismodule(kind) else getattr(kind, "__module__", None) or ""
    if name.split(".")[0] == "colever":
        return True
    file = source_file(kind)
    places = [file] if file else [Path(p) for p in getattr(kind, "__path__", ())]  # the latter: a folder without a file
    return bool(places) and not any(p.is_relative_to(folder) for p in places for folder in _LIBRARIES)


class _Describer:
    """Each value once: shared parts cost nothing, and a value that holds itself ends."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._known: dict[int, tuple[Any, str]] = {}  # the value too: an id is only unique while it lives
        self._open: set[int] = set()

    def __call__(self, value: Any) -> str:
        if isinstance(value, str):
            for root in self._roots:
                value = value.replace(root, ".")
        if isinstance(value, (*_PLAIN, *_PRINTED)):
            return repr(value)
        if id(value) in self._open:
            return "again"
        if id(value) not in self._known:
            self._open.add(id(value))
            self._known[id(value)] = value, digest_of(self._parts(value))
            self._open.discard(id(value))
        return self._known[id(value)][1]

    def _parts(self, value: Any) -> Any:
        if isinstance(value, tuple | list | deque):
            return [self(v) for v in value]
        if isinstance(value, _SETS):
            return sorted(self(v) for v in value)
        if isinstance(value, _TABLES):
            return sorted([self(k), self(v)] for k, v in value.items())
        if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
            content = self(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
            return [str(value.dtype), list(value.shape), content]
        if inspect.isclass(value) or inspect.ismodule(value):
            return getattr(value, "__qualname__", value.__name__)
        if isinstance(value, dspy.Module):
            return [[name, self._module(module)] for name, module in value.named_sub_modules()]
        return self._code(value) if callable(value) or inspect.iscode(value) else self._object(value)

    def _code(self, value: Any) -> Any:
        if inspect.iscode(value):
            return [value.co_code.hex(), self(value.co_consts), list(value.co_names)]
        if isinstance(value, functools.partial):
            return [self(value.func), self(value.args), self(value.keywords)]
        if inspect.ismethod(value):
            return [self(value.__func__), self(value.__self__)]
        if inspect.isbuiltin(value):  # the method of a dict, say: what it is bound to is what it answers from
            bound = getattr(value, "__self__", None)
            return [value.__qualname__, None if inspect.ismodule(bound) else self(bound)]
        if inspect.isfunction(value):
            cells = [_content(c) for c in (value.__closure__ or ())]
            defaults = [value.__defaults__ or (), value.__kwdefaults__ or {}]
            return [self(value.__code__), self(defaults), self(cells)]
        wrapped = getattr(value, "__wrapped__", None)  # a cached function
        name = getattr(value, "__qualname__", None)
        inner = self(wrapped) if inspect.isfunction(wrapped) else self._object(value)
        return [name if isinstance(name, str) else None, inner]

    def _object(self, value: Any) -> Any:
        kind = type(value)
        called: Any = getattr(vars(kind).get("__call__"), "__code__", None)
        state = _state(value) if is_own(kind) or isinstance(value, _READABLE) else {}
        return [kind.__qualname__, self(called), self(state)]

    def _module(self, module: dspy.Module) -> Any:
        """Class and attributes; its sub-modules stand beside it."""
        kept = {k: v for k, v in vars(module).items() if k not in _DRAWN and not isinstance(v, dspy.Module)}
        return [type(module).__qualname__, {k: self(_without_modules(v)) for k, v in kept.items()}]


def _without_modules(value: Any) -> Any:
    """A list or dict of sub-modules without them: they are described under their own names."""
    if isinstance(value, tuple | list):
        return [_without_modules(v) for v in value if not isinstance(v, dspy.Module)]
    if isinstance(value, dict):
        return {k: _without_modules(v) for k, v in value.items() if not isinstance(v, dspy.Module)}
    return value


def _state(value: Any) -> Mapping[str, Any]:
    slots = [s for kind in type(value).__mro__ for s in _slots(kind) if not s.startswith("__")]
    return {**{s: getattr(value, s) for s in slots if hasattr(value, s)}, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a function that names itself
        return "empty"
