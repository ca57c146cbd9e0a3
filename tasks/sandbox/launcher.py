"""The small trusted parent of one check: walls off, starts the program and its tests, ends them, says how they ended.

Speaks frames (``wire``): reads the limits; the tests' process reads the job, which the program's process, forked before
it came, has never held. Colever's end is ``host``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from . import checker, program, wire
from .confine import Confinement, confine

_GRACE = 5  # seconds of CPU that tests have beyond the program's, and seconds to end once the program has been ended
_WATCHED = {signal.SIGCHLD, signal.SIGTERM}


def main(parent: int) -> None:
    """Everything; returns when both children are gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _die_with(parent)
    sys.path[:] = [os.path.realpath(p) for p in sys.path]  # inside there are folders, and no links to them
    os.environ.clear()  # Python itself has put a locale there
    nothing = os.open(os.devnull, os.O_RDWR)
    limits = wire.receive(0)
    try:
        own_user = _wall_off(limits)
        ended = _check(limits, own_user, nothing)
    except OSError as error:
        wire.send(1, {"cannot": str(error)})
        return
    wire.send(1, ended)


def _die_with(parent: int) -> None:
    """SIGTERM, and so an orderly end, when the thread that asked is gone."""
    if sys.platform == "linux":
        from . import kernel

        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _wall_off(limits: Any) -> bool:
    if limits["level"] != "namespaces":
        return False
    from . import namespaces

    return namespaces.enter(limits["scratch_mb"])


class _Child:
    """A process; once it has ended, how and after how many seconds of CPU; ``late``: it had to be ended."""

    def __init__(self, process: int) -> None:
        self.process, self.cpu, self.late = process, 0.0, False
        self.status: int | None = None

    def look(self) -> None:
        if self.status is None:
            found, status, used = os.wait4(self.process, os.WNOHANG)
            if found:
                self.status, self.cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def end(self) -> None:
        if self.status is None:
            os.kill(self.process, signal.SIGKILL)
            _, status, used = os.wait4(self.process, 0)
            self.status, self.cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def _check(limits: Any, own_user: bool, nothing: int) -> dict[str, Any]:
    """Two children, both confined, joined by two pipes; the first to be started ends the namespace when it ends."""
    asked, answered, ready = os.pipe(), os.pipe(), os.pipe()
    seconds, most = limits["seconds"], limits["output_kb"] << 10

    def confinement(cpu: int) -> Confinement:
        return Confinement(limits["level"], cpu, limits["memory_mb"], limits["scratch_mb"], own_user)

    def tests() -> None:
        job = wire.receive(0)
        _judge(job, checker.Program(asked[1], answered[0], most))

    def generated() -> None:
        program.serve(asked[0], answered[1], most)

    judges = _start(tests, confinement(seconds + _GRACE), _Files((0, 1, asked[1], answered[0]), ready[1], nothing))
    runs = _start(generated, confinement(seconds), _Files((asked[0], answered[1]), ready[1], nothing))
    for file in (*asked, *answered, ready[1]):
        os.close(file)
    try:
        _hear(ready[0])
        _watch(judges, runs, limits["wall"])
    finally:
        for child in (runs, judges):
            child.end()
    return {name: vars(child) for name, child in (("tests", judges), ("program", runs))}


class _Files(NamedTuple):
    """What a child keeps open: its own, where it says that it is confined, and what stands for nothing."""

    own: tuple[int, ...]
    ready: int
    nothing: int

    def keep(self) -> None:
        """Closes all other files; standard input and output become /dev/null unless they are its own."""
        for file in (0, 1, 2):
            if file not in self.own:
                os.dup2(self.nothing, file)
        last = 2
        for file in sorted(f for f in (*self.own, self.ready) if f > last):
            os.closerange(last + 1, file)
            last = file
        os.closerange(last + 1, 1 << 16)


def _start(work: Callable[[], None], confinement: Confinement, files: _Files) -> _Child:
    """Forks a child that confines itself, says so, and works with its own files alone."""
    if process := os.fork():
        return _Child(process)
    try:
        files.keep()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            confine(confinement)
        except OSError as error:
            os.write(files.ready, f"{error}\n".encode())
            os._exit(1)
        os.close(files.ready)
        work()
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
        os._exit(3)
    os._exit(0)


def _judge(job: Any, other: checker.Program) -> None:
    verdict_file = os.dup(1)
    os.dup2(2, 1)  # what tests print goes nowhere
    try:
        verdict = checker.judge(job, other)
    except checker.Broken as error:
        verdict = {"broken": str(error)}
    except SystemExit:
        verdict = {"broken": "they end the interpreter"}
    wire.send(verdict_file, {**verdict, "nonce": job["nonce"]})


def _hear(ready: int) -> None:
    """Raises OSError with what a child could not do to itself."""
    with open(ready, "rb") as file:
        said = file.read().decode().strip()
    if said:
        raise OSError(said.splitlines()[0])


def _watch(judges: _Child, runs: _Child, wall: float) -> None:
    """Until the tests have ended; ends the program, then the tests, when their time is up. SIGTERM ends both."""
    started = time.monotonic()
    while judges.status is None:
        left = wall + (_GRACE if runs.status is not None else 0) - (time.monotonic() - started)
        if left <= 0:
            late = judges if runs.status is not None else runs
            late.late = True
            late.end()
        elif _wait(min(left, 1.0)):
            return
        for child in (judges, runs):
            child.look()


def _wait(seconds: float) -> bool:
    """Sleeps until a child ends; True if this process is asked to end."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(min(seconds, 0.01))
        return signal.SIGTERM in signal.sigpending()
    told = signal.sigtimedwait(_WATCHED, seconds)
    return told is not None and told.si_signo == signal.SIGTERM
