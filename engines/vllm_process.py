"""A server's process as this one started it: under a watcher, with what it says kept in a log.

Knows commands, process groups and logs; nothing of HTTP or of what the server does. Its watcher knows when it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from colever.engines import vllm_watch

GRACE = vllm_watch.GRACE + 5.0
_ODD = ("Traceback", "  ")  # how lines begin that say where something failed, not what


class ServerProcess:
    """Runs from its making for as long as its watcher finds it wanted in ``folder``. Its output is added to ``log``.

    Raises OSError where it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path, token: str
    ) -> None:
        self.log, self.token = log, token
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._from = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", vllm_watch.__file__, str(folder), token, *command],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=dict(environment), cwd=tempfile.gettempdir(),  # where no folder passes for a package
            )  # fmt: skip

    @property
    def group(self) -> int:
        """The id of the process group that the server is in."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ended(self) -> None:
        """Returns when it has ended with all that it has started; a watcher that does not end it is helped."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # where the watcher itself was killed
        self._process.wait()
        deadline = time.monotonic() + GRACE
        while _there(self._process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)

    def said(self) -> str:
        """The last lines of its output that say anything, as one line."""
        with self.log.open("rb") as file:
            file.seek(max(self._from, self.log.stat().st_size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
        telling = [line.strip() for line in lines if line.strip() and not line.startswith(_ODD)]
        errors = [line for line in telling if "rror" in line]
        return " | ".join((errors or telling)[-2:]) or "it said nothing"


def _there(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
