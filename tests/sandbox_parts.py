"""Parts of the sandbox's tests: what every escape is tried against, and what must hold after each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from colever.errors import InfrastructureError
from colever.tasks.sandbox.host import Job, Level, Limits, Verdict, check

SMALL = Limits(seconds=20, memory_mb=256, output_kb=64, scratch_mb=4)  # time enough on a loaded machine
QUICK = Limits(seconds=1, memory_mb=256, output_kb=64, scratch_mb=4)  # for programs that are meant to run out of it
WALLS: tuple[Level, ...] = ("namespaces", "landlock")
ASSERTS = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n"


def needs(level: Level) -> Level:
    """Skips the test, with the reason, where the machine has not this one level."""
    try:
        check(Job(["def f(x): return x"], [["f(1)", 1]], "f"), SMALL, level=level)
    except InfrastructureError as error:
        pytest.skip(f"this machine has no {level}: {error}")
    return level


def run(source: str, level: Level, limits: Limits = SMALL, tests: str | Sequence[Any] = ASSERTS) -> Verdict:
    """A check of ``f``, after which no process that it started is left."""
    verdict = check(Job([source], tests, "f"), limits, level=level)
    assert not left_over()
    return verdict


def left_over() -> list[str]:
    """Processes of a launcher of this process, wherever they hang in the tree by now; zombies too."""
    marks = ["-I", "-S", "-c"]
    found = []
    for process in psutil.process_iter(["cmdline", "pid", "status"]):
        line = process.info["cmdline"] or []
        if line[1:4] == marks and line[-1] == str(os.getpid()) and "sandbox.launcher" in line[4]:
            found.append(f"{process.info['pid']} {process.info['status']}")
    children = psutil.Process().children(recursive=True)
    return found + [f"{c.pid} zombie" for c in children if c.status() == psutil.STATUS_ZOMBIE]
