"""The process that compares mathematics for all threads of this one; started when first asked, replaced when stuck."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from colever.errors import InfrastructureError

START_SECONDS = 120.0  # importing sympy, on a busy machine
_LOCK = threading.Lock()
_running: dict[int, subprocess.Popen[str]] = {}  # by this process's id: a fork starts its own
_WORKER = Path(__file__).with_name("math_worker.py")


@functools.lru_cache(maxsize=8192)
def equal(labels: tuple[str, ...], text: str, digits: int, seconds: int) -> bool | None:
    """Whether a text's expression equals one of the labels'; None where no label is mathematics.

    False where that takes too long: each part of the work has ``seconds``, and all of it three times that. Raises
    InfrastructureError where the process cannot be started, or ends twice on one request other than by a signal.
    """
    request = {"labels": labels, "text": text, "digits": digits, "seconds": seconds}
    with _LOCK:
        for _ in range(2):
            process = _started()
            with contextlib.suppress(OSError):  # it has ended since: seen below
                process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            line = _line(process, 3.0 * seconds)
            if line is None:
                _stop()
                return False
            if line:
                return json.loads(line)  # type: ignore[no-any-return]
            status = process.wait()
            _stop()
    if status < 0:  # twice by a signal: what it was asked overflows its stack, or its memory
        return False
    raise InfrastructureError(f"math: the process that compares expressions ended with status {status}")


def _started() -> subprocess.Popen[str]:
    process = _running.get(os.getpid())
    if process is not None and process.poll() is None:
        return process
    command = [sys.executable, "-P", str(_WORKER)]  # -P: the files beside it are not modules to be imported
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )
    _running[os.getpid()] = process
    if not _line(process, START_SECONDS):
        _stop()
        raise InfrastructureError("math: the process that compares expressions did not start")
    return process


def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
    """The next line; "" where the process has ended, None where it has said nothing in time."""
    out: Any = process.stdout
    return out.readline() if select.select([out], [], [], seconds)[0] else None


def _stop() -> None:
    process = _running.pop(os.getpid(), None)
    if process is not None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                stream.close()  # type: ignore[union-attr]


atexit.register(_stop)
