"""Locks by name: files where one machine works on a home folder, leases in a database where several do.

A lock's name is its path below the home folder, such as ``rounds/<key>.lock`` or ``studies/toy/.locks/trial-3``. The
system lets go of a file's lock when its process ends, however it ends; a lease expires. Knows files and names; knows
nothing of what is locked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock as SystemLock
from filelock import Timeout

from colever.errors import StoreError
from colever.process import alive
from colever.stores import stores_of

if TYPE_CHECKING:
    from types import TracebackType

    from colever.leases import Leases


class Lock(Protocol):
    """One name's lock, which its thread may take again; another ``Lock`` of the name excludes it."""

    def take(self) -> bool:
        """Whether it is held from now on; never waits."""
        ...

    def wait(self, on_wait: Callable[[], None] = ...) -> None:
        """Take it when it is free; ``on_wait`` is called once if it is not."""
        ...

    def release(self) -> None: ...

    def note(self, value: Any) -> None:
        """JSON that others read while it is held. Raises StoreError where it cannot be written."""
        ...

    def check(self) -> None:
        """Raises StoreError where it was lost: by a lease alone, of a process that could not renew it."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Locks(Protocol):
    """Makes locks, and says which are held."""

    slowest: float  # seconds: between looks of one who waits for long

    def lock(self, name: str) -> Lock:
        """A new one of that name."""
        ...

    def held(self, first: str) -> list[str]:
        """The names that begin so and are held by anyone; looking at a file's lock takes it for a moment."""
        ...

    def notes(self, first: str) -> Mapping[str, Any]:
        """The notes of those that are held under names that begin so."""
        ...

    def tidy(self, first: str) -> None:
        """Remove what those left who were killed while they held such names."""
        ...


class FileLocks:
    """Locks on files below a folder, for the processes of one machine."""

    slowest = 0.5

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self, name: str) -> FileLock:
        return FileLock(self.folder / name)

    def held(self, first: str) -> list[str]:
        return [self._name(p) for p in self._found(first) if p.suffix not in (".json", ".tmp") and not _is_free(p)]

    def notes(self, first: str) -> Mapping[str, Any]:
        found = {self._name(p.with_suffix("")): _note_in(p) for p in self._found(first) if p.suffix == ".json"}
        return {name: note for name, note in found.items() if note is not None}

    def tidy(self, first: str) -> None:
        for path in self._found(first):
            if path.suffix == ".json" and _is_free(path.with_suffix("")):
                path.unlink(missing_ok=True)

    def _found(self, first: str) -> list[Path]:
        start = self.folder / first
        return sorted(start.parent.glob(f"{start.name}*"))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


class FileLock:
    """A lock on a file, and beside it, as ``<name>.json``, its note. Raises StoreError where its folder is not made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder {path.parent} cannot be made: {error.strerror}") from error
        self._lock, self._noted = SystemLock(path), False

    def take(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def wait(self, on_wait: Callable[[], None] = lambda: None) -> None:
        if not self.take():
            on_wait()
            self._lock.acquire()

    def release(self) -> None:
        if self._noted:
            _beside(self.path).unlink(missing_ok=True)
        self._lock.release()

    def note(self, value: Any) -> None:
        path = _beside(self.path)
        try:
            path.with_suffix(".tmp").write_text(json.dumps({"process": os.getpid(), "note": value}), encoding="utf-8")
            path.with_suffix(".tmp").replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}") from error
        self._noted = True

    def check(self) -> None:
        """Never lost while the process lives."""

    def __enter__(self) -> FileLock:
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Below:
    """The locks whose names begin with a folder's."""

    def __init__(self, locks: Locks, folder: str) -> None:
        self._locks, self._folder, self.slowest = locks, folder, locks.slowest

    def lock(self, name: str) -> Lock:
        return self._locks.lock(f"{self._folder}/{name}")

    def held(self, first: str) -> list[str]:
        return [name.removeprefix(f"{self._folder}/") for name in self._locks.held(f"{self._folder}/{first}")]

    def notes(self, first: str) -> Mapping[str, Any]:
        found = self._locks.notes(f"{self._folder}/{first}")
        return {name.removeprefix(f"{self._folder}/"): note for name, note in found.items()}

    def tidy(self, first: str) -> None:
        self._locks.tidy(f"{self._folder}/{first}")


_leases: dict[tuple[int, str], Leases] = {}


def locks_of(home: Path) -> Locks:
    """Those of all who work on ``home``. Raises StoreError where its database cannot be used."""
    url = stores_of(home).database
    if not url:
        return FileLocks(home)
    here = (os.getpid(), url)
    if here not in _leases:
        from colever.database import Database
        from colever.leases import Leases

        _leases[here] = Leases(Database(url))
    return _leases[here]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _note_in(path: Path) -> Any:
    """None of a process that is gone."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return made["note"] if alive(made["process"]) else None
    except (OSError, ValueError, KeyError):  # none, or gone since it was listed
        return None


def _is_free(path: Path) -> bool:
    lock = SystemLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True
