"""Which of a trainer's checkpoint folders are whole. Knows files; knows nothing of what trains.

The trainer writes a folder file by file. A *seal*, written last and renamed into place, says that it is whole; it holds
whatever the trainer's owner wants to remember with it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "pull.json"


def seal_checkpoint(folder: Path, memory: Mapping[str, Any]) -> None:
    """Flush every file of ``folder`` to disk, then say that it is whole. Raises OSError."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    temporary = folder / f"{SEAL}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(dict(memory), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SEAL)


def last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its memory; half-written ones are removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            found.append((int(path.name.split("-")[1]), path, json.loads((path / SEAL).read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    if not found:
        return None
    _, path, memory = max(found, key=lambda item: item[0])
    return path, memory
