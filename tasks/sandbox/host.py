"""Colever's side of the sandbox: one check of one program, from any thread, and what this machine can enforce.

Knows jobs, limits and verdicts; how a child is walled off is told in the modules beside it. A check is a process of its
own that ends with everything it started, whatever becomes of this one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from colever.errors import InfrastructureError, TaskError

Level = Literal["namespaces", "landlock", "limits"]
Isolation = Literal["required", "best"]
LEVELS: tuple[Level, ...] = ("namespaces", "landlock", "limits")  # the strongest first
WALLS: Mapping[Level, str] = {
    "namespaces": "no network, no other process in sight, files read-only but for scratch in memory",
    "landlock": "no network, no other process in reach, files read-only, no scratch",
    "limits": "only time and memory are limited; unit tests need isolation=best here",
}
_START = """import sys
sys.path.append(sys.argv[1])
from sandbox.launcher import main
sys.path.pop()
main(int(sys.argv[2]))"""
_FOLDER = str(Path(__file__).resolve().parent.parent)
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}  # a thread's own arena would take 64 MB of its address space
_WALL = 4  # seconds of time per second of CPU
_SLOW_START = 60.0  # seconds; a launcher that takes longer beyond the limits is broken
_GRACE = 5  # as in launcher.py


@dataclass(frozen=True)
class Limits:
    """Of the program: CPU in whole seconds (four times as long by the clock), memory, an answer's size, scratch."""

    seconds: int = 5
    memory_mb: int = 512
    output_kb: int = 256
    scratch_mb: int = 16


@dataclass(frozen=True)
class Job:
    """``sources``: the program, in the first form that Python can read. ``tests``: source with asserts and, where it
    has one, a function ``check`` of one argument; a list of asserts; or pairs of a call and what it must equal.
    ``setup`` runs before the tests, beside them. Only the function ``entry_point`` of the program is called.
    """

    sources: Sequence[str]
    tests: str | Sequence[Any]
    entry_point: str
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """``clean``: all tests passed, and nothing else went wrong. ``reason`` says what did; never what was expected."""

    passed: int
    total: int
    clean: bool
    reason: str = ""

    @property
    def share(self) -> float:
        return 1.0 if self.clean else self.passed / self.total if self.total else 0.0


@dataclass(frozen=True)
class Found:
    """The strongest level that this machine has (None: none), and why each stronger one is missing."""

    level: Level | None
    missing: Mapping[str, str]


_TRIVIAL = Job(["import fractions, hashlib, random, zlib\ndef f(x): return x"], [["f(1)", 1]], "f")

_places = threading.BoundedSemaphore(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
_looking = threading.Lock()
_found: list[Found] = []


def check(
    job: Job, limits: Limits | None = None, isolation: Isolation = "required", level: Level | None = None
) -> Verdict:
    """Runs the program's tests; waits while as many checks run as there are CPUs. ``level``: that one and no other.

    Raises InfrastructureError where the sandbox cannot be started or, unless ``isolation`` is ``best``, where the
    machine has nothing stronger than limits; TaskError for tests that cannot be used whatever the program.
    """
    with _places:
        return _check(job, limits or Limits(), level or level_for(isolation))


def level_for(isolation: Isolation) -> Level:
    """The level that checks run at. Raises InfrastructureError where the machine has none that is accepted."""
    found = available()
    if found.level is None or (found.level == "limits" and isolation == "required"):
        why = "; ".join(f"{level}: {reason}" for level, reason in found.missing.items())
        more = " isolation=best runs programs with limits of time and memory alone" if found.level else ""
        raise InfrastructureError(f"this machine cannot wall off a generated program ({why}).{more}")
    return found.level


def available() -> Found:
    """What this machine can do, tried once in a process by checking a program at each level."""
    with _looking:
        if not _found:
            _found.append(_look())
        return _found[0]


def _look() -> Found:
    missing: dict[str, str] = {}
    for level in LEVELS:
        try:
            verdict = _check(_TRIVIAL, Limits(seconds=30), level)
        except InfrastructureError as error:
            missing[level] = str(error)
            continue
        if verdict.clean:
            return Found(level, missing)
        missing[level] = f"a trivial program failed: {verdict.reason}"
    return Found(None, missing)


def _check(job: Job, limits: Limits, level: Level) -> Verdict:
    if not hasattr(os, "fork"):
        raise InfrastructureError(f"programs cannot be run apart on {sys.platform}; accepted: Linux, or another POSIX")
    nonce = secrets.token_hex(16)
    asked = [{**asdict(limits), "level": level, "wall": _WALL * limits.seconds}, {**asdict(job), "nonce": nonce}]
    frames, errors = _launch(b"".join(_framed(part) for part in asked), _WALL * limits.seconds + _SLOW_START)
    ended = frames[-1] if frames else {}
    if "cannot" in ended:
        raise InfrastructureError(f"sandbox ({level}): {ended['cannot']}")
    if "program" not in ended:
        raise InfrastructureError(f"sandbox ({level}): the launcher ended early: {errors or 'it said nothing'}")
    verdict = next((f for f in frames[:-1] if f.get("nonce") == nonce), None)
    return _judged(verdict, ended["tests"], ended["program"], limits)


def _framed(data: Any) -> bytes:
    body = json.dumps(data).encode()
    return len(body).to_bytes(8, "big") + body


def _launch(asked: bytes, seconds: float) -> tuple[list[Any], str]:
    """The frames that came back, and the last line of what was said on standard error."""
    command = [sys.executable, "-I", "-S", "-c", _START, _FOLDER, str(os.getpid())]
    pipe = subprocess.PIPE
    try:
        launcher = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=_ENVIRONMENT, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise InfrastructureError(f"sandbox: {sys.executable} cannot be started: {error}") from error
    try:
        said, errors = launcher.communicate(asked, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise InfrastructureError(f"sandbox: no verdict within {seconds:.0f} s") from None
    finally:
        _end(launcher)
    lines = errors.decode(errors="replace").strip().splitlines()
    return _frames(said), lines[-1] if lines else ""


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """In order (its children first) if that can be, and in any case."""
    if launcher.poll() is None:
        launcher.terminate()
        try:
            launcher.wait(timeout=10)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()
    for file in (launcher.stdin, launcher.stdout, launcher.stderr):
        if file is not None:
            file.close()


def _frames(said: bytes) -> list[Any]:
    frames = []
    while len(said) >= 8:
        end = 8 + int.from_bytes(said[:8], "big")
        try:
            frames.append(json.loads(said[8:end]))
        except ValueError:
            return []
        said = said[end:]
    return frames


def _judged(verdict: Any, tests: Any, program: Any, limits: Limits) -> Verdict:
    if verdict is None:
        if tests["late"] or _used_up(tests, limits.seconds + _GRACE):
            return Verdict(0, 0, False, "the tests did not come to an end on what the program returned")
        raise InfrastructureError(f"sandbox: the tests' process {_ended(tests['status'])}")
    if "broken" in verdict:
        raise TaskError(f"the tests cannot be used: {verdict['broken']}")
    passed, total = verdict["passed"], verdict["total"]
    if verdict["gone"] is not None:
        return Verdict(0, total, False, verdict["gone"] or _why(program, limits))
    reason = "" if verdict["clean"] else f"{passed} of {total} tests pass: {verdict['reason'] or 'no test was reached'}"
    return Verdict(passed, total, verdict["clean"], reason)


def _why(program: Any, limits: Limits) -> str:
    if program["late"]:
        return f"the program ran for more than {_WALL * limits.seconds} s"
    if _used_up(program, limits.seconds):
        return f"the program used up its {limits.seconds} s of CPU"
    return f"the program's process {_ended(program['status'])}"


def _used_up(child: Any, seconds: int) -> bool:
    return child["status"] in (-signal.SIGKILL, -signal.SIGXCPU) and child["cpu"] > seconds - 0.5


def _ended(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
