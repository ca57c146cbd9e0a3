"""The tests' own process: runs them on values that the program answered with, and counts those that pass.

A test is an ``assert`` statement (all of them run: one that fails does not hide the next), or a pair of a call and
what it must equal. The functions under test are proxies: the program's code never runs here.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import wire

_PASSED, _FAILED = "__passed__", "__failed__"


class ProgramGone(BaseException):
    """The program's process has ended or does not speak the protocol. No test can catch it as an Exception."""


class ProgramError(Exception):
    """What the program raised, where Python has no built-in exception of that name, or no simple one."""


class Broken(Exception):
    """The tests cannot be used, whatever the program."""


class Program:
    """The other process, as functions."""

    def __init__(self, requests: int, replies: int, most: int) -> None:
        self.requests, self.replies, self.most, self.calls = requests, replies, most, 0

    def load(self, sources: Sequence[str]) -> None:
        """Raises what the program raises."""
        self._ask(list(sources))

    def function(self, name: str) -> Callable[..., Any]:
        """A proxy: arguments and results are copies, of plain values."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            sent = {k: wire.encode(v) for k, v in named.items()}
            return self._ask({"name": name, "arguments": [wire.encode(a) for a in arguments], "named": sent})

        call.__name__ = call.__qualname__ = name
        return call

    def _ask(self, request: Any) -> Any:
        try:
            wire.send(self.requests, request)
            reply = wire.receive(self.replies, self.most)
        except (EOFError, OSError):
            raise ProgramGone from None
        except wire.WireError as error:
            raise ProgramGone(f"the program answered {error}") from None
        if not isinstance(reply, dict) or not ({"value"} == set(reply) or {"raised", "as", "said"} == set(reply)):
            raise ProgramGone("the program answered out of turn")
        if "value" in reply:
            return wire.decode(reply["value"])
        raise _rebuilt(str(reply["raised"]), str(reply["as"]), str(reply["said"]))


def _rebuilt(name: str, base: str, said: str) -> Exception:
    kind = getattr(builtins, base, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and name == base:
        try:
            error = kind(said)
        except TypeError:  # UnicodeDecodeError and the like want more
            return ProgramError(f"{name}: {said}")
        error.__cause__ = ProgramError(f"{name}: {said}")
        return error
    return ProgramError(f"{name}: {said}")


class Tally:
    """Which tests (by number) have passed, which have failed, and the first thing that went wrong."""

    def __init__(self) -> None:
        self.passed, self.failed, self.reason = set[int](), set[int](), ""

    def passes(self, number: int) -> None:
        self.passed.add(number)

    def fails(self, number: int) -> None:
        self.failed.add(number)
        self.reason = self.reason or _told(sys.exc_info()[1])


class _Counted(ast.NodeTransformer):
    """Every ``assert`` of something that is not constant reports to the tally, and lets the rest run."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant):
            return node
        calls = [ast.parse(f"{name}({self.count})").body for name in (_FAILED, _PASSED)]
        self.count += 1
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, calls[0])
        return ast.copy_location(ast.Try([node], [handler], calls[1], []), node)


def judge(job: Any, program: Program) -> dict[str, Any]:
    """The verdict on one program. Raises Broken where the tests are at fault."""
    names: dict[str, Any] = {"__name__": "tests"}
    tree, total = _tests(job["tests"])
    _run(job["setup"], names)
    tally = Tally()
    names.update(
        {job["entry_point"]: program.function(job["entry_point"]), _PASSED: tally.passes, _FAILED: tally.fails}
    )
    whole, gone = False, None
    try:
        program.load(job["sources"])
        _test(tree, job, names, tally)
        whole = True
    except ProgramGone as error:
        gone = str(error)
    except Exception as error:  # noqa: BLE001 - the boundary to the tests: what they raise is a failure
        tally.reason = tally.reason or _told(error)
    if whole and not program.calls:
        raise Broken(f"the tests never call {job['entry_point']!r}")
    good = len(tally.passed - tally.failed)
    clean = whole and not tally.failed and (good > 0 or total == 0)
    return {"passed": good, "total": total, "clean": clean, "gone": gone, "reason": tally.reason}


def _tests(tests: Any) -> tuple[Any, int]:
    if isinstance(tests, list) and tests and all(isinstance(t, list) and len(t) == 2 for t in tests):
        return [(_code(call, "eval"), expected) for call, expected in tests], len(tests)
    source = "\n".join(tests) if isinstance(tests, list) else tests
    counted = _Counted()
    try:
        tree = ast.fix_missing_locations(counted.visit(ast.parse(source)))
    except (SyntaxError, ValueError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None
    return _code(tree, "exec"), counted.count


def _code(source: Any, mode: str) -> Any:
    try:
        return compile(source, "tests", mode, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None


def _run(setup: str, names: dict[str, Any]) -> None:
    try:
        exec(_code(setup, "exec"), names)
    except Exception as error:  # noqa: BLE001 - the boundary to the data's code, re-raised as its type
        raise Broken(f"what comes before the tests raised {type(error).__name__}: {error}") from None


def _test(tests: Any, job: Any, names: dict[str, Any], tally: Tally) -> None:
    if not isinstance(tests, list):
        exec(tests, names)
        if callable(check := names.get("check")):
            check(names[job["entry_point"]])
        return
    for number, (call, expected) in enumerate(tests):
        try:
            if eval(call, names) != expected:
                raise AssertionError
            tally.passes(number)
        except Exception:  # noqa: BLE001 - the boundary to the tests: a call that raises has not passed
            tally.fails(number)


def _told(error: BaseException | None) -> str:
    """One line. What the tests themselves raise is told by its type: its text may hold what is expected."""
    if error is None or isinstance(error, AssertionError):
        return "a result is wrong"
    said = error if isinstance(error, ProgramError) else error.__cause__
    told = str(said) if isinstance(said, ProgramError) else f"{type(error).__name__} in the tests"
    return ascii(" ".join(told.split()))[1:-1][:300]
