"""This process among those of all machines that may see one folder, and whether another one is gone.

A number alone says nothing of a process on another machine, or in another container of this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path

KEPT = 7 * 24 * 3600  # seconds, after which what another machine's process left half-written is taken for left


def machine() -> str:
    """Eight hex digits of this machine, or of this container: where process numbers mean the same."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def mark() -> str:
    """What this process's temporary files have in their names: ``1f2e3d4c-4711``."""
    return f"{machine()}-{os.getpid()}"


def is_left(path: Path) -> bool:
    """Whether the process that was writing ``.<name>.<mark>.tmp`` is gone; of another machine's, whether it is old."""
    where, _, number = path.name.split(".")[-2].rpartition("-")
    if not number.isdigit():
        return False
    if where in ("", machine()):
        return not alive(int(number))
    try:
        return time.time() - path.stat().st_mtime > KEPT
    except OSError:  # gone since it was listed
        return False


def alive(process: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
