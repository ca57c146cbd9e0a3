"""The home folder as a mirror of what several machines share: rounds, evaluations and studies of one object store.

Knows which names are content that never changes (rounds, evaluations) and which are read fresh (a study's files);
knows nothing of what is in them but their checksums. In the store:

    rounds/<key>/record.json     the commit object: published last, it names the round's files by digest
    files/<sha256>               what these files hold
    evaluations/<key>.json
    studies/<name>/<file>        written through, the last writer's

The first publication of a round or an evaluation stays: a second one's home takes the first. What has been published
is noted in ``<home>/.published``, so that nothing is asked for twice, and what could not be is published when it is
next read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from colever.errors import StoreError
from colever.objects import Objects, open_objects
from colever.optimizers.sealed import file_digest, make_folder, placed, read_sealed, sync_tree, temporary_of
from colever.stores import stores_of

RECORD = "record.json"
AGAIN = "run the same command again: this round alone is computed again"


class Mirror:
    """What of ``objects`` lies below ``home``, fetched as needed."""

    def __init__(self, home: Path, objects: Objects) -> None:
        self.home, self.uri, self._objects = home, objects.uri, objects
        self._notes = home / ".published" / hashlib.sha256(objects.uri.encode()).hexdigest()[:16]

    def round(self, key: str) -> None:
        """Whoever made it, the round is here and there from now on; if nobody did, nothing happens."""
        if not (self.home / "rounds" / key).exists():
            self._fetch_round(key)
        elif not self._noted(f"rounds/{key}"):
            self.publish_round(key)

    def publish_round(self, key: str) -> bool:
        """The finished round in ``home``, its files first. False where another was first: that one is the round now."""
        folder = self.home / "rounds" / key
        data = _read(folder / RECORD, str(folder / RECORD))
        for name, digest in data["files"].items():
            self._objects.store(f"files/{digest}", folder / name, once=True)
        first = self._objects.store(f"rounds/{key}/{RECORD}", folder / RECORD, once=True)
        if not first:
            self._fetch_round(key)
        self._note(f"rounds/{key}")
        return first

    def evaluation(self, name: str) -> None:
        """The same for an evaluation's file, such as ``evaluations/<key>.json``."""
        if not (self.home / name).exists():
            self._fetch_sealed(name)
        elif not self._noted(name):
            self.publish_evaluation(name)

    def publish_evaluation(self, name: str) -> None:
        if not self._objects.store(name, self.home / name, once=True):
            self._fetch_sealed(name)
        self._note(name)

    def refresh(self, name: str) -> None:
        """A study's file as it is now; one that is here alone is published."""
        target = self.home / name
        with self._aside(target) as temporary:
            if self._objects.fetch(name, temporary):
                temporary.replace(target)
            elif target.is_file():
                self._objects.store(name, target)

    def publish(self, name: str) -> None:
        """A study's file, as it is here."""
        self._objects.store(name, self.home / name)

    def studies(self) -> list[str]:
        """The names of the studies that have been published."""
        return self._objects.under("studies/")

    # --- fetching ------------------------------------------------------------------------------------

    def _fetch_round(self, key: str) -> None:
        target = self.home / "rounds" / key
        with self._aside(target) as temporary:
            temporary.mkdir()
            if not self._objects.fetch(f"rounds/{key}/{RECORD}", temporary / RECORD):
                return
            where = f"{self.uri}/rounds/{key}/{RECORD}"
            data = _read(temporary / RECORD, where)
            if _same(temporary, target):
                return
            for name, digest in data["files"].items():
                self._fetch_file(digest, temporary / _inside(name, where), where)
            sync_tree(temporary)
            _swapped(temporary, target)
        self._note(f"rounds/{key}")

    def _fetch_file(self, digest: str, into: Path, record: str) -> None:
        into.parent.mkdir(parents=True, exist_ok=True)
        there = self._objects.fetch(f"files/{digest}", into)
        if not there or file_digest(into) != digest:
            what = "differs from its checksum" if there else "is gone"
            file = f"{self.uri}/files/{digest}"
            raise StoreError(f"{file} {what}. Delete {f'it and {record}' if there else record}; {AGAIN}")

    def _fetch_sealed(self, name: str) -> None:
        target = self.home / name
        with self._aside(target) as temporary:
            if self._objects.fetch(name, temporary):
                _read(temporary, f"{self.uri}/{name}")
                temporary.replace(target)
                self._note(name)

    @contextmanager
    def _aside(self, target: Path) -> Iterator[Path]:
        """Where to write what becomes ``target``; what is left of it is removed. Raises StoreError."""
        temporary = temporary_of(target)
        make_folder(target.parent)
        try:
            yield temporary
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)

    # --- what was published --------------------------------------------------------------------------

    def _noted(self, name: str) -> bool:
        return name in self._notes.read_text(encoding="utf-8").splitlines() if self._notes.exists() else False

    def _note(self, name: str) -> None:
        make_folder(self._notes.parent)
        try:
            with self._notes.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
        except OSError as error:
            raise StoreError(f"{self._notes} cannot be written: {error.strerror}") from error


def mirror_of(home: Path) -> Mirror | None:
    """None where the home folder is all there is. Raises UsageError for a store that is none."""
    uri = stores_of(home).objects
    return Mirror(home, open_objects(uri)) if uri else None


def _read(file: Path, where: str) -> Any:
    """What is sealed in a file that came from ``where``. Raises StoreError where it is damaged."""
    try:
        return read_sealed(file)
    except ValueError as error:
        raise StoreError(f"{where} differs from its checksum. Delete it; {AGAIN}") from error


def _inside(name: str, where: str) -> PurePosixPath:
    """A file's name within its round. Raises StoreError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath(RECORD):
        raise StoreError(f"{where} names a file outside its round: {name!r}")
    return path


def _same(one: Path, other: Path) -> bool:
    """Whether both are one round."""
    return other.exists() and (one / RECORD).read_bytes() == (other / RECORD).read_bytes()


def _swapped(temporary: Path, target: Path) -> None:
    """``temporary`` becomes ``target``, in the place of one that is there."""
    if not placed(temporary, target) and not _same(temporary, target):
        aside = temporary_of(target)
        target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
