"""Answers that were paid for, kept by the digest of what was asked: in a file that processes share, or in memory.

Knows keys and JSON; asks nobody. One SQLite file: what a killed process had written is there whole, and of two
processes that bring an answer to the same question the first is believed by both.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colever.errors import StoreError

MOST = 100_000  # answers in a file; beyond them the oldest are dropped
PATIENCE = 60.0  # seconds to wait for another process that writes
_TABLE = "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, value TEXT)"


class Answers:
    """Thread-safe. ``file`` None: in memory, for this process alone. Raises StoreError for a file that is none."""

    def __init__(self, file: Path | None, most: int = MOST) -> None:
        self.file, self._most, self._lock = file, most, threading.Lock()
        with self._told():
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            where = ":memory:" if file is None else file
            self._opened = sqlite3.connect(where, timeout=PATIENCE, check_same_thread=False)
            with self._opened:
                self._opened.execute(_TABLE)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put under the key, or None. Raises StoreError."""
        with self._lock, self._told():
            row = self._opened.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else dict(json.loads(row[0]))

    def put(self, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Keep it, unless the key has one already; what the key has. Raises StoreError."""
        with self._lock, self._told():
            with self._opened:
                row = (key, json.dumps(value))
                self._opened.execute("INSERT OR IGNORE INTO answers (key, value) VALUES (?, ?)", row)
                self._opened.execute("DELETE FROM answers WHERE id <= (SELECT max(id) FROM answers) - ?", (self._most,))
            found = self._opened.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
            return dict(json.loads(found[0])) if found else dict(value)

    def __len__(self) -> int:
        with self._lock, self._told():
            return int(self._opened.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._opened.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StoreError(
                f"{self.file or 'the answers in memory'} cannot be used ({error}); delete the file to ask anew"
            ) from error
