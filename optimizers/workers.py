"""Several processes on one study: who is there, who runs which trial, and one writer at a time.

Each of these is a lock on a file, which the system lets go of when a process ends, however it ends: nothing has to be
cleaned up after a kill. Knows files; knows nothing of Optuna or of what a trial does.

studies/<name>/.locks/writer      held while the study's files, database and tracked runs are written
studies/<name>/.locks/finish      held while the test cells are evaluated and the report is made
studies/<name>/.locks/worker-0    held by a worker as long as it is there
studies/<name>/.locks/trial-3     held by the worker that runs trial 3
studies/<name>/.locks/worker-0.json  what this worker has spent, where the study has caps
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from colever.errors import StoreError
from colever.optimizers.sealed import alive
from colever.types import Cost, read_json

MOST = 64  # workers of one study on one machine
FLYING = "in flight"


class Workers:
    """This process among a study's workers.

    ``writing`` may be entered again inside itself. Looking at a lock takes it for a moment, so whoever looks
    (``joined``, ``others``, ``take``, ``elsewhere``) does so while writing.
    """

    def __init__(self, study: Path) -> None:
        self.folder = study / ".locks"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder {self.folder} cannot be made: {error.strerror}") from error
        self._writer, self._finish = FileLock(self.folder / "writer"), FileLock(self.folder / "finish")
        self._here: FileLock | None = None
        self.first = False  # nobody else was there when this one joined
        self._trials: dict[int, FileLock] = {}

    @contextmanager
    def joined(self) -> Iterator[None]:
        """One of the workers while the block runs. Raises StoreError where there are ``MOST`` already."""
        slots = (FileLock(self.folder / f"worker-{slot}") for slot in range(MOST))
        with self.writing():
            for left in self.folder.glob("worker-*.json"):  # by one that was killed: its number may be another's now
                if _free(left.with_suffix("")):
                    left.unlink(missing_ok=True)
            self._here = next((lock for lock in slots if _taken(lock)), None)
            self.first = not self.others()
        if self._here is None:
            raise StoreError(f"{MOST} workers run this study already")
        try:
            yield
        finally:
            for number in list(self._trials):
                self.release(number)
            self._spent().unlink(missing_ok=True)
            self._here.release()

    def others(self) -> int:
        """How many other workers are there now."""
        mine = Path(self._here.lock_file).name if self._here else ""
        with self.writing():
            return sum(p.name != mine and not p.suffix and not _free(p) for p in self.folder.glob("worker-*"))

    def writing(self) -> FileLock:
        """The lock to write under: the others wait."""
        return self._writer

    def reserving(self) -> FileLock:
        """The lock to reserve under, a new one: threads of one worker wait for each other too."""
        return FileLock(self.folder / "reserving")

    @contextmanager
    def finishing(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Ends the study alone: the others wait, are told so, and then find all of it done."""
        if not _taken(self._finish):
            on_wait()
            self._finish.acquire()
        try:
            yield
        finally:
            self._finish.release()

    def take(self, trial: int) -> bool:
        """Whether the trial is this worker's from now on: nobody runs it, or who did is gone."""
        if trial not in self._trials:
            lock = FileLock(self.folder / f"trial-{trial}")
            if not _taken(lock):
                return False
            self._trials[trial] = lock
        return True

    def elsewhere(self, trial: int) -> bool:
        """Whether another worker runs the trial now."""
        return trial not in self._trials and not _free(self.folder / f"trial-{trial}")

    def publish(self, spent: Mapping[str, Cost]) -> None:
        """What this worker has spent, by what for. Raises StoreError where it cannot be written."""
        path = self._spent()
        made = {"process": os.getpid(), "spent": {name: asdict(cost) for name, cost in spent.items()}}
        try:
            path.with_suffix(".tmp").write_text(json.dumps(made), encoding="utf-8")
            path.with_suffix(".tmp").replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}") from error

    def published(self) -> dict[str, Cost]:
        """What the other living workers have spent, by what for; work in flight by worker."""
        found: dict[str, Cost] = {}
        for path in self.folder.glob("worker-*.json"):
            if path == self._spent():
                continue
            try:
                made: dict[str, Any] = read_json(path)
            except (OSError, ValueError):  # gone since it was listed
                continue
            if alive(made["process"]):
                for name, cost in made["spent"].items():
                    found[f"{name} {path.stem}" if name == FLYING else name] = Cost(**cost)
        return found

    def _spent(self) -> Path:
        if self._here is None:
            raise RuntimeError("join first")
        return Path(self._here.lock_file + ".json")

    def release(self, trial: int) -> None:
        """The trial is no longer this worker's."""
        self._trials.pop(trial).release()


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _free(path: Path) -> bool:
    lock = FileLock(path)
    if not _taken(lock):
        return False
    lock.release()
    return True
