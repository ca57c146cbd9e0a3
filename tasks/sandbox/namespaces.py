"""Namespaces: a root folder that holds libraries and a scratch folder in memory, no network, no other process in sight.

Needs user namespaces, or root with CAP_SYS_ADMIN. They are entered once, by the launcher; its children live in them.
Departure from the textbook: nothing is executed inside, so neither programs nor /proc or /dev are needed there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import kernel, places

_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_ALL = _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV
_ROOT = "/proc"  # a folder that every Linux has, and that nothing needed lies in: the new root is mounted over it
SCRATCH = "/tmp"


def enter(scratch_mb: int) -> bool:
    """Raises OSError where the machine does not allow it. Returns whether other user ids can be taken."""
    user = os.geteuid()
    own = user == 0 and _as_root()
    if not own:
        group = os.getegid()
        kernel.unshare(_ALL | _NEW_USER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _new_root(places.folders(), places.hidden(), scratch_mb)
    return own


def _as_root() -> bool:
    try:
        kernel.unshare(_ALL)
    except PermissionError:  # a root without CAP_SYS_ADMIN, as in a container
        return False
    return True


def _write(file: str, text: str) -> None:
    with open(file, "w") as opened:
        opened.write(text)


def _new_root(folders: Sequence[str], hidden: Sequence[str], scratch_mb: int) -> None:
    os.umask(0o022)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _ROOT, "tmpfs", _SAFE, "size=1m,mode=755")
    for folder in folders:
        os.makedirs(_ROOT + folder)
        kernel.mount(folder, _ROOT + folder, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.make_read_only(_ROOT + folder)
    for name in ("/lib", "/lib64"):  # where libraries are looked for
        if os.path.islink(name) and not os.path.lexists(_ROOT + name):
            os.symlink(os.path.realpath(name), _ROOT + name)
    for folder in hidden:
        kernel.mount("tmpfs", _ROOT + os.path.realpath(folder), "tmpfs", _SAFE | kernel.MS_RDONLY, "size=4k,mode=755")
    os.mkdir(_ROOT + SCRATCH)
    kernel.mount("tmpfs", _ROOT + SCRATCH, "tmpfs", _SAFE, f"size={scratch_mb}m,nr_inodes=1000,mode=1777")
    kernel.change_root(_ROOT)
    kernel.mount(None, "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _SAFE)
