"""A server's process: started with a watcher that ends it when this process is gone, however that happens.

Knows commands, process groups and logs; nothing of HTTP or of what the server does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from colever.engines import vllm_watch

GRACE = vllm_watch.GRACE + 5.0
_ODD = ("Traceback", "  ")  # how lines begin that say where something failed, not what


class ServerProcess:
    """Runs from its making until ``stop``, or until this process or the object is gone. Its output is added to ``log``.

    Raises OSError where it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._from = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", vllm_watch.__file__, *command],
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=dict(environment), cwd=tempfile.gettempdir(),  # where no folder passes for a package
            )  # fmt: skip
        self._ended = weakref.finalize(self, _end, self._process, os.getpid())

    @property
    def group(self) -> int:
        """The id of the process group that the server is in."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the server and all that it has started; returns when they have ended."""
        self._ended()

    def said(self) -> str:
        """The last lines of its output that say anything, as one line."""
        with self.log.open("rb") as file:
            file.seek(max(self._from, self.log.stat().st_size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
        telling = [line.strip() for line in lines if line.strip() and not line.startswith(_ODD)]
        errors = [line for line in telling if "rror" in line]
        return " | ".join((errors or telling)[-2:]) or "it said nothing"


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process whose server it is
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()  # which tells the watcher
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # where the watcher itself was killed
    process.wait()
    deadline = time.monotonic() + GRACE
    while _there(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _there(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
