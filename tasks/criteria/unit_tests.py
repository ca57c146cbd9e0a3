"""Criterion ``unit_tests``: the code in a field is run, apart from its tests, and the share of them that pass counts.

docs/sandbox.md says what is enforced, and what is not. A sandbox that cannot start makes no score.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from colever.errors import TaskError
from colever.tasks.sandbox.host import Isolation, Job, Limits, Verdict, check
from colever.types import Step

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_REMEMBERED = 256  # verdicts: a gold metric may ask again for what the rubric has just asked
_LONGEST = 100_000  # characters of a program
_MOST = {"seconds": 600, "memory_mb": 65536, "output_kb": 65536, "scratch_mb": 65536}


def program_in(text: str, entry_point: str = "") -> str:
    """The code of a reply: of its fenced blocks the first that defines ``entry_point``, else the first; else all."""
    blocks = [found[1] for found in _FENCED.finditer(text)]
    defining = [
        b for b in blocks if re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", b, re.MULTILINE)
    ]
    return (defining or blocks or [text])[0]


@functools.lru_cache(_REMEMBERED)
def _verdict(job: str, limits: Limits, isolation: Isolation) -> Verdict:
    return check(Job(*json.loads(job)), limits, isolation)


@dataclass(frozen=True)
class UnitTests:
    """The share of the unit tests that the program in ``code`` passes; all or nothing with ``partial=false``.

    ``tests``, ``entry_point`` and ``setup`` name fields of the example: its tests (source with asserts and, if it has
    one, ``check(candidate)``; a list of asserts; or pairs of a call and what it must equal), the function that they
    call, and trusted code that comes before both ("": none), which the program may also continue. A program that
    crashes, runs out of time or memory, or answers out of turn scores 0.

    Range: 0 to 1. Reads: the field, the three labels. Cost: a process for a check, up to ``seconds`` of CPU.
    Raises InfrastructureError where the machine cannot wall the program off, unless ``isolation`` is ``best``.
    """

    code: str
    tests: str = "test"
    entry_point: str = "entry_point"
    setup: str = ""
    seconds: int = 5
    memory_mb: int = 512
    output_kb: int = 256
    scratch_mb: int = 16
    partial: bool = True
    isolation: Isolation = "required"

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise TaskError(f"unit_tests: {name} is {value!r}; accepted: a whole number from 1 to {most}")
        if self.isolation not in ("required", "best"):
            raise TaskError(f"unit_tests: isolation is {self.isolation!r}; accepted: required, best")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        verdict = self.verdict(example, prediction)
        return verdict.share if self.partial else float(verdict.clean)

    def verdict(self, example: dspy.Example, prediction: dspy.Prediction) -> Verdict:
        """How many tests passed, of how many, and what went wrong, in words that tell nothing expected."""
        code, entry_point = prediction[self.code], str(self._label(example, self.entry_point))
        if not isinstance(code, str) or len(code) > _LONGEST:
            return Verdict(0, 0, False, f"no program: accepted are {_LONGEST:,} characters of text".replace(",", " "))
        setup = str(self._label(example, self.setup)) if self.setup else ""
        program = program_in(code, entry_point)
        sources = [f"{setup.rstrip()}\n\n{program}", program] if setup else [program]
        limits = Limits(self.seconds, self.memory_mb, self.output_kb, self.scratch_mb)
        job = json.dumps([sources, self._label(example, self.tests), entry_point, setup])
        return _verdict(job, limits, self.isolation)

    @staticmethod
    def _label(example: dspy.Example, name: str) -> Any:
        if name not in example:
            raise TaskError(f"unit_tests: the example has no field {name!r}; it has: {', '.join(example.keys())}")
        return example[name]
