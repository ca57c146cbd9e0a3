"""Contents behind one URI that several machines share: a folder that all of them see, or a bucket (``s3``).

Knows names and bytes, and how to wait for a place that is away for a while; knows nothing of rounds and studies.
A content is there whole or not at all. No message holds more of an address than was given: credentials are no part
of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from colever import console
from colever.errors import StoreError, UsageError

T = TypeVar("T")
PATIENCE = 90.0  # seconds that a place may be away
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two tries: doubled from one to the next
TOLD_AFTER, TOLD_EVERY = 2.0, 15.0  # seconds: what a transfer that takes its time says
PASSING = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
logger = logging.getLogger(__name__)


class Objects(Protocol):
    """Named contents. A name is a relative path with ``/``.

    Every method raises ConnectionError where the place is away for now, StoreError where it refuses.
    """

    uri: str

    def fetch(self, name: str, into: Path) -> bool:
        """The content as the file ``into``, streamed; False where there is none."""

    def store(self, name: str, file: Path, *, once: bool = False) -> bool:
        """The file's content under the name, streamed; with ``once`` what is there stays, and the answer is False."""

    def has(self, name: str) -> bool:
        """Whether there is such a content."""

    def under(self, prefix: str) -> list[str]:
        """What comes next, up to a ``/``, in the names that begin with ``prefix``, which ends with one: sorted."""


class FolderObjects:
    """A folder that all machines have mounted. It has to be there: a mount that is gone is no store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, str(folder)

    def fetch(self, name: str, into: Path) -> bool:
        with self._reached():
            try:
                shutil.copyfile(self.folder / name, into)
            except FileNotFoundError:
                if not into.parent.is_dir():
                    raise
                return False
            return True

    def store(self, name: str, file: Path, *, once: bool = False) -> bool:
        target = self.folder / name
        if once and self.has(name):
            return False
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._reached():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, temporary)
                _flushed(temporary)
                return _placed(temporary, target, once)
            finally:
                temporary.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        with self._reached():
            return (self.folder / name).is_file()

    def under(self, prefix: str) -> list[str]:
        with self._reached():
            folder = self.folder / prefix
            return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        if not self.folder.is_dir():
            raise StoreError(f"objects {self.uri}: there is no such folder; accepted: one that is there, and mounted")
        try:
            yield
        except OSError as error:
            if error.errno in PASSING:
                raise ConnectionError(error.strerror) from error
            raise StoreError(f"objects {self.uri}: {error.strerror or error}") from error


class Patient:
    """Objects that wait, with back-off, for a place that is away for a short while, and tell of a long transfer.

    ``told`` gets a line for a transfer that takes more than two seconds. Raises StoreError where the place stays away.
    """

    def __init__(self, objects: Objects, told: Callable[[str], None] = logger.info, patience: float = PATIENCE) -> None:
        self.uri, self._objects, self._told, self._patience = objects.uri, objects, told, patience

    def fetch(self, name: str, into: Path) -> bool:
        with self._telling(f"fetching {name} from", into):
            return self._kept_up(lambda: self._objects.fetch(name, into))

    def store(self, name: str, file: Path, *, once: bool = False) -> bool:
        with self._telling(f"sending {name} to", file):
            return self._kept_up(lambda: self._objects.store(name, file, once=once))

    def has(self, name: str) -> bool:
        return self._kept_up(lambda: self._objects.has(name))

    def under(self, prefix: str) -> list[str]:
        return self._kept_up(lambda: self._objects.under(prefix))

    def _kept_up(self, call: Callable[[], T]) -> T:
        end, wait = 0.0, FIRST_WAIT
        while True:
            try:
                return call()
            except ConnectionError as error:
                end = end or time.monotonic() + self._patience
                if time.monotonic() + wait > end:
                    raise StoreError(
                        f"objects {self.uri} cannot be reached ({error}). Finished rounds are kept in the home folder; "
                        "the next call publishes them"
                    ) from error
                if wait == FIRST_WAIT:
                    self._told(f"objects {self.uri}: {error}; trying again for {self._patience:.0f} s")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    @contextlib.contextmanager
    def _telling(self, what: str, file: Path) -> Iterator[None]:
        done = threading.Event()

        def tell() -> None:
            wait = TOLD_AFTER
            while not done.wait(wait):
                with contextlib.suppress(OSError):
                    self._told(f"{what} {self.uri}: {file.stat().st_size / 1e6:,.1f} MB")
                wait = TOLD_EVERY

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            done.set()


@lru_cache
def open_objects(uri: str, patience: float | None = None) -> Objects:
    """``s3://BUCKET/PREFIX``, or a folder's path or ``file:`` URL. Raises UsageError for anything else."""
    patience = PATIENCE if patience is None else patience
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        from colever.s3 import S3Objects

        return Patient(S3Objects(uri), console.say, patience)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise UsageError(f"objects: {parts.scheme}: accepted: s3://BUCKET/PREFIX, or a folder that all machines see")
    return Patient(FolderObjects(Path(unquote(parts.path) if parts.scheme else uri)), console.say, patience)


def _placed(temporary: Path, target: Path, once: bool) -> bool:
    if once:
        try:
            os.link(temporary, target)  # fails where there is one, on every machine that sees the folder
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the last of two that come at once stays
            if target.exists():
                return False
    temporary.replace(target)
    return True


def _flushed(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
