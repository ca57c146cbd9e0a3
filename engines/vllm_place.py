"""Where the processes of one study on one machine meet over one vLLM server: a folder of files with locks.

Knows locks, and what is said of the server; starts nothing. The kernel gives a lock back however its holder ends, so
the server ends with the last process that uses it, SIGKILL included:

- ``turn``: held by whoever starts, stops or looks for the server.
- ``users``: shared by every process that may use the server. A watcher that can have it alone ends its server.
- ``server.json``: the server that runs, or why it did not come up. A watcher whose server is not in it ends it.
- ``alive-TOKEN``: held by a server's watcher and by the server for as long as they live.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from colever.engines.vllm_watch import GRACE, SAID, alive, locked, remove
from colever.errors import UsageError
from colever.types import digest_of

LOOK_EVERY = 0.1  # seconds
PATIENCE = GRACE + 5.0  # seconds that a watcher has to end its server


@dataclass(frozen=True)
class Said:
    """What ``server.json`` holds. ``failed``: why the server did not come up; a server that is not ``ready`` starts."""

    token: str
    port: int = 0
    key: str = ""
    group: int = 0  # of the processes, its watcher's id
    rank: int = 0  # the largest of adapters
    ready: bool = False
    failed: str = ""


class Place:
    """``parts`` say what a server is and who may share it; equal ones are one place. None: this object's alone.

    Raises UsageError where the folder is somebody else's.
    """

    def __init__(self, parts: object = None) -> None:
        name = uuid.uuid4().hex if parts is None else f"{os.getuid()}-{digest_of([repr(parts)])}"
        self.folder = Path(tempfile.gettempdir()) / f"colever-vllm-{name}"
        self._users: int | None = None
        self._owner = os.getpid()

    @contextmanager
    def turn(self, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Alone among the processes here, and one of the users from then on. ``waits`` is called again and again."""
        file = self._turned(waits)
        try:
            if self._users is None:
                self._join()
            yield
        finally:
            os.close(file)

    def _turned(self, waits: Callable[[], None]) -> int:
        while True:
            self._make()
            try:
                file = _opened(self.folder / "turn")
            except FileNotFoundError:
                continue  # the last one that left has just taken the folder away
            try:
                while not locked(file, fcntl.LOCK_EX):
                    waits()
                    time.sleep(LOOK_EVERY)
                if _is_still(self.folder / "turn", file):
                    return file
            except BaseException:  # an interrupt too: the lock is given back, then it goes on up
                os.close(file)
                raise
            os.close(file)

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            found = self.folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise UsageError(f"{self.folder}: accepted: a folder that is yours alone, or none; remove it")

    def _join(self) -> None:
        file = _opened(self.folder / "users")
        try:
            if locked(file, fcntl.LOCK_EX):  # nobody uses what is said to be there
                self.end()
            while not locked(file, fcntl.LOCK_SH):  # a watcher ends its server
                time.sleep(LOOK_EVERY)
        except BaseException:  # an interrupt too: what is held is let go, then it goes on up
            os.close(file)
            raise
        self._users, self._owner = file, os.getpid()

    def leave(self) -> bool:
        """Be no user any more; the last one ends the server. Whether it was the last; in a fork of a user: nothing."""
        if self._users is None or os.getpid() != self._owner:
            return False
        file, self._users = self._users, None
        try:
            # Whoever can have it alone is the last, and a watcher that has it has found the same.
            last = locked(file, fcntl.LOCK_EX) or not locked(file, fcntl.LOCK_SH)
            if last:
                self.end()
                remove(self.folder)
            return last
        finally:
            os.close(file)

    # --- what is said of the server ------------------------------------------------------------------

    def said(self) -> Said | None:
        try:
            return Said(**json.loads((self.folder / SAID).read_text()))
        except FileNotFoundError:
            return None

    def say(self, said: Said) -> None:
        new = self.folder / f"{SAID}.new"
        new.write_text(json.dumps(asdict(said)))
        new.replace(self.folder / SAID)

    def alive(self, said: Said) -> bool:
        """Whether its processes are there."""
        return alive(self.folder, said.token)

    def end(self) -> None:
        """The server, if there is one; returns when it has ended."""
        said = self.said()
        (self.folder / SAID).unlink(missing_ok=True)  # which tells its watcher
        for patience in (PATIENCE, GRACE):
            deadline = time.monotonic() + patience
            while said is not None and self.alive(said) and time.monotonic() < deadline:
                time.sleep(0.02)
            if said is None or not said.group or not self.alive(said):
                return
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(said.group, signal.SIGKILL)  # its watcher was killed; while it lives the number is its own


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_still(path: Path, file: int) -> bool:
    """Whether the open ``file`` is the one that is at ``path``."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
