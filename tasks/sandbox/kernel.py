"""Linux's system calls that Python 3.11 has no name for, through ctypes. A failure is an OSError that names the call.

Knows numbers and structures; what they are used for is told in ``namespaces``, ``landlock`` and ``seccomp``.
"""

from __future__ import annotations

import ctypes
import os
import struct

MACHINE = os.uname().machine
# Calls with another number on each architecture; those since Linux 5.1 have the same everywhere.
_NUMBERS = {"x86_64": {"pivot_root": 155, "capset": 126}, "aarch64": {"pivot_root": 41, "capset": 91}}
_MOUNT_SETATTR = 442

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_AT_RECURSIVE, _CAPABILITIES = 0x8000, 0x20080522
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, name: str, *arguments: int | bytes | None) -> int:
    """A raw call, by number; ``name`` is for the error."""
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *given), name)


def prctl(option: int, argument: int | ctypes.Array[ctypes.c_char] | bytes, more: object = 0) -> None:
    given = ctypes.c_ulong(argument) if isinstance(argument, int) else argument
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, given, zero if more == 0 else more, zero, zero), f"prctl({option})")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(options) or None)
    _checked(result, f"mount({target})")


def make_read_only(target: str) -> None:
    """A mount and all below it; on kernels before 5.12 the mount alone."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)  # the same bits as MOUNT_ATTR_*
    try:
        syscall(_MOUNT_SETATTR, "mount_setattr", -100, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes))
    except OSError:
        kept = os.statvfs(target).f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | 8)  # 8: noexec
        mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def change_root(folder: str) -> None:
    """``folder``, a mount, becomes /; what was there before is gone."""
    os.chdir(folder)
    syscall(_number("pivot_root"), "pivot_root", b".", b".")
    _checked(_libc.umount2(b".", 2), "umount2")  # 2: detach
    os.chdir("/")


def drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITIES, 0)
    syscall(_number("capset"), "capset", header, bytes(24))


def _number(name: str) -> int:
    if MACHINE not in _NUMBERS:
        raise OSError(f"{name} has no known number on {MACHINE}; known: {', '.join(_NUMBERS)}")
    return _NUMBERS[MACHINE][name]


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
