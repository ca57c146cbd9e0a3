"""What a child of the launcher does to itself before it runs anything that came from outside."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import NamedTuple

from . import landlock, places, seccomp

if sys.platform == "linux":
    from . import kernel

_THREADS = 32
_FILES = 64
_SPARE_MEMORY = 64  # MB that Python and the libraries loaded by now take of the address space
_FIRST_USER = 1_900_000_000  # ids that no account has; one of its own for every child
_NOBODY = 65534


class Confinement(NamedTuple):
    """``level`` is ``namespaces`` (already entered), ``landlock`` or ``limits``."""

    level: str
    seconds: int  # of CPU
    memory_mb: int
    scratch_mb: int
    own_user: bool  # other user ids can be taken


def confine(c: Confinement) -> None:
    """For good. Raises OSError for what the machine does not allow."""
    os.setsid()
    if c.level == "namespaces":
        os.chdir("/tmp")
        if c.own_user:
            _become_nobody()
    _limit(c)
    if sys.platform != "linux":
        return
    if c.level != "limits":
        kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if c.level == "landlock":
        landlock.restrict(places.entries(), listed=places.STDLIB)
    if c.level == "landlock" or seccomp.available():
        _filter(needed=c.level != "limits")


def _filter(needed: bool) -> None:
    try:
        seccomp.install()
    except OSError:
        if needed:
            raise


def _become_nobody() -> None:
    os.setgroups([])
    for user in (_FIRST_USER + os.getpid(), _FIRST_USER, _NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue
        return
    raise OSError(f"no unprivileged user id can be taken (tried {_FIRST_USER} and {_NOBODY})")


def _limit(c: Confinement) -> None:
    memory, file = (c.memory_mb + _SPARE_MEMORY) << 20, (c.scratch_mb << 20 if c.level == "namespaces" else 0)
    limits = {"CPU": c.seconds, "AS": memory, "FSIZE": file, "NOFILE": _FILES, "CORE": 0, "MSGQUEUE": 0}
    if c.level == "namespaces":
        limits["NPROC"] = _THREADS
    for name, most in limits.items():
        if (number := getattr(resource, f"RLIMIT_{name}", None)) is None:
            continue
        hard = resource.getrlimit(number)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))
