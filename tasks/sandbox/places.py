"""What a sandbox may read: Python's standard library and the system's libraries; not what was installed beside.

A package may hold the very tests that a program is judged by, so installed packages are kept out of sight.
"""

from __future__ import annotations

import glob
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
    """Folders of installed packages inside ``folders()``, of any Python."""
    patterns = [f"{glob.escape(f)}/python*/{name}" for f in folders() for name in HIDDEN]
    found = {path for pattern in patterns for path in glob.glob(pattern)} | {f"{STDLIB}/{name}" for name in HIDDEN}
    return sorted(path for path in found if os.path.isdir(path) and os.path.realpath(path) == path)


def entries() -> list[str]:
    """As ``folders()`` less ``hidden()``, for rules that can only add: entry by entry."""
    system = [e.path for folder in folders() for e in os.scandir(folder) if not e.name.startswith("python")]
    library = [e.path for e in os.scandir(STDLIB)]
    return [path for path in (*system, *library) if os.path.basename(path) not in HIDDEN]
