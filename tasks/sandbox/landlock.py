"""Landlock: this process may read what is named, and change nothing. Needs Linux 6.2; no right and no namespace."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from . import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
LEAST = 3  # before it a file that may be read can be truncated


def version() -> int:
    """The kernel's ABI of Landlock; 0 where there is none."""
    try:
        return kernel.syscall(_CREATE, "landlock", None, 0, 1)
    except OSError:
        return 0


def restrict(paths: Iterable[str], listed: str) -> None:
    """What is in ``paths`` can be read, and names below ``listed`` be seen; nothing else.

    Needs no_new_privs. Raises OSError where the kernel lacks Landlock or has too old one.
    """
    abi = version()
    if abi < LEAST:
        raise OSError(f"Landlock has ABI {abi}; {LEAST} is needed (Linux 6.2)")
    files = (1 << 15) - 1 if abi < 5 else (1 << 16) - 1
    # Files; binding and connecting by TCP; abstract sockets and signals to others.
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = kernel.syscall(_CREATE, "landlock_create_ruleset", attributes, len(attributes), 0)
    for path in paths:
        _allow(rules, path, _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE)
    _allow(rules, listed, _READ_DIR)
    kernel.syscall(_RESTRICT, "landlock_restrict_self", rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be opened is not allowed
    try:
        kernel.syscall(_ADD, "landlock_add_rule", rules, 1, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)
