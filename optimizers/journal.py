"""A file of JSON lines to which finished work is added: what a killed process had written is there, whole, later on.

Knows files and JSON; knows nothing of what is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from colever.errors import StoreError

T = TypeVar("T")


class Journal:
    """Appends entries, a line each; a last line that a kill cut short is dropped when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self, of: Callable[[dict[str, Any]], T]) -> list[T]:
        """``of`` every entry, oldest first. Raises StoreError for a file that cannot be read or is no such journal."""
        if not self.path.exists():
            return []
        try:
            data = self.path.read_bytes()
            whole, _, torn = data.rpartition(b"\n")
            if torn:
                os.truncate(self.path, len(data) - len(torn))
            return [of(json.loads(line)) for line in whole.split(b"\n") if line]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self.path} cannot be read ({error}); delete it to run this pull from its start"
            ) from error

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add it. Raises StoreError where the disk takes no more."""
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error
