"""What a sandbox may read: Python's standard library and the system's libraries; not what was installed beside."""

from __future__ import annotations

import os
import sys

STDLIB = os.path.realpath(os.path.dirname(os.__file__))
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
HIDDEN = ("site-packages", "dist-packages")


def folders() -> list[str]:
    """Each folder once, none inside another; the interpreter's own libraries are with it where it has any."""
    own = os.path.realpath(os.path.join(sys.base_prefix, "lib"))
    found: list[str] = []
    for place in sorted({os.path.realpath(p) for p in (*SYSTEM, own, STDLIB) if os.path.isdir(p)}, key=len):
        if not any(place == f or place.startswith(f + "/") for f in found):
            found.append(place)
    return found


def hidden() -> list[str]:
    """Folders of installed packages inside ``folders()``."""
    own = os.path.join(sys.base_prefix, "lib")
    inside = [os.path.join(base, name) for base in {STDLIB, os.path.realpath(own)} for name in HIDDEN]
    return [path for path in inside if os.path.isdir(path)]


def entries() -> list[str]:
    """As ``folders()``, for rules that can only add: the standard library's entries one by one, less the hidden."""
    own = os.path.realpath(os.path.join(sys.base_prefix, "lib"))
    system = [p for p in folders() if p != own and p != STDLIB]
    libraries = [e.path for e in os.scandir(own) if ".so" in e.name] if own not in system else []
    library = [e.path for e in os.scandir(STDLIB) if e.name not in HIDDEN]
    return [*system, *libraries, *library]
