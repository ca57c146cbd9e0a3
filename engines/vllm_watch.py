"""Runs a server, and ends it with all that it has started when nobody uses it any more.

A script of its own, on the standard library alone: ``python vllm_watch.py FOLDER TOKEN COMMAND…``, in a process group
of its own. The folder is a ``vllm_place.Place``: every process that uses the server holds a lock in it, which the
kernel gives back when the process ends, however it ends, SIGKILL included.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 10.0  # seconds that the command has to end after it was asked to
SAID = "server.json"
LOOK_EVERY = 0.1  # seconds


def main(folder: Path, token: str, command: list[str]) -> None:
    """Never returns: the last that it does is to kill its own group."""
    for ours in (signal.SIGTERM, signal.SIGINT):  # meant for the group; a handler is not inherited, SIG_IGN would be
        signal.signal(ours, lambda *_: None)
    life = os.open(_life(folder, token), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(life, fcntl.LOCK_EX)
    users = os.open(folder / "users", os.O_RDWR)
    if not wanted(folder, token, users):
        return
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(life,))
    threading.Thread(target=_end_when_unused, args=(child, folder, token, users), daemon=True).start()
    sys.stdout.write(f"the server ended with status {child.wait()}\n")
    sys.stdout.flush()
    _end(folder, users)


def wanted(folder: Path, token: str, users: int) -> bool:
    """Whether anybody uses the server, and it is the one that is spoken of."""
    try:
        said = json.loads((folder / SAID).read_text())
    except (OSError, ValueError):
        return False
    return said["token"] == token and not locked(users, fcntl.LOCK_EX)


def alive(folder: Path, token: str) -> bool:
    """Whether a server's processes are there."""
    try:
        life = os.open(_life(folder, token), os.O_RDWR)
    except FileNotFoundError:
        return False
    free = locked(life, fcntl.LOCK_SH)
    os.close(life)
    return not free


def locked(file: int, how: int) -> bool:
    """Whether the lock could be had at once. One that was held on ``file`` is given up in any case."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove(folder: Path) -> None:
    """A folder that has no users, which the caller knows by their lock; unless somebody has come."""
    try:
        turn = os.open(folder / "turn", os.O_RDWR)
    except FileNotFoundError:
        return
    if locked(turn, fcntl.LOCK_EX):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(turn)


def _life(folder: Path, token: str) -> Path:
    return folder / f"alive-{token}"


def _end_when_unused(child: subprocess.Popen[bytes], folder: Path, token: str, users: int) -> None:
    while wanted(folder, token, users):
        time.sleep(LOOK_EVERY)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _end(folder, users)


def _end(folder: Path, users: int) -> None:
    """Of what the command has left behind, and of this process."""
    if locked(users, fcntl.LOCK_EX):
        remove(folder)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
