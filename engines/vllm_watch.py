"""Runs a command, and ends it with all that it has started when whoever holds the other end of its stdin is gone.

A script of its own, on the standard library alone: ``python vllm_watch.py COMMAND…``, in a process group of its own.
Stdin is a pipe that nobody writes to: it closes when the starting process ends, however it ends, SIGKILL included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 10.0  # seconds that the command has to end after it was asked to


def main(command: list[str]) -> None:
    """Never returns: the last that it does is to kill its own group."""
    for ours in (signal.SIGTERM, signal.SIGINT):  # meant for the group; a handler is not inherited, SIG_IGN would be
        signal.signal(ours, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(child,), daemon=True).start()
    sys.stdout.write(f"the server ended with status {child.wait()}\n")
    sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)  # what the command has left behind, and this process


def _end_with_parent(child: subprocess.Popen[bytes]) -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
