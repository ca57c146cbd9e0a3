"""The generated program's own process: runs it, then answers calls of its functions. Nothing in here is believed.

Knows neither tests nor expected values; what it is asked and what it answers are plain values on two pipes.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from typing import Any

from . import wire

_LONGEST = 300  # characters of an exception's message
_TYPES = {kind.__name__ for kind in vars(__import__("builtins")).values() if isinstance(kind, type)}


def serve(requests: int, replies: int, most: int) -> None:
    """Until the requests end. ``most``: bytes of an answer."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    _answer(replies, most, lambda: _load(module, wire.receive(requests)))
    while True:
        try:
            request = wire.receive(requests)
        except EOFError:
            return
        _answer(replies, most, lambda request=request: _call(module, request))  # type: ignore[misc]


def _load(module: types.ModuleType, sources: Sequence[str]) -> None:
    exec(_compiled(sources), vars(module))


def _compiled(sources: Sequence[str]) -> types.CodeType:
    """The first of the sources that Python can read. Raises the last one's SyntaxError where it can read none."""
    for source in sources[:-1]:
        try:
            return compile(source, "program", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return compile(sources[-1], "program", "exec", dont_inherit=True)


def _call(module: types.ModuleType, request: Any) -> Any:
    function = getattr(module, request["name"])
    named = {str(k): wire.decode(v) for k, v in request["named"].items()}
    return function(*(wire.decode(a) for a in request["arguments"]), **named)


def _answer(replies: int, most: int, work: Any) -> None:
    try:
        wire.send(replies, {"value": wire.encode(work())}, most)
    except OSError as error:
        if error.errno == 32:  # EPIPE: nobody asks any more
            os._exit(0)
        _fail(replies, error)
    except BaseException as error:  # noqa: BLE001 - the boundary to the program: whatever it raises is its answer
        _fail(replies, error)


def _fail(replies: int, error: BaseException) -> None:
    known = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _TYPES]
    try:
        said = str(error)[:_LONGEST]
    except BaseException:  # noqa: BLE001 - the program's own __str__
        said = ""
    wire.send(replies, {"raised": type(error).__name__[:80], "as": known[0], "said": said})
