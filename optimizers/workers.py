"""Several processes on one study: who is there, who runs which trial, and one writer at a time.

Each of these is a lock (``colever.locks``): on a file, or a lease in a database that several machines share. Nothing
has to be cleaned up after a kill. Knows locks; knows nothing of Optuna or of what a trial does.

studies/<name>/.locks/writer      held while the study's files, database and tracked runs are written
studies/<name>/.locks/finish      held while the test cells are evaluated and the report is made
studies/<name>/.locks/reserving   held while a batch is reserved, where the study has caps
studies/<name>/.locks/worker-0    held by a worker as long as it is there; its note is what the worker has spent
studies/<name>/.locks/trial-3     held by the worker that runs trial 3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from colever.errors import StoreError
from colever.locks import Below, FileLocks, Lock, Locks, locks_of
from colever.types import Cost

MOST = 1024  # workers of one study
FLYING = "in flight"
FOLDER = ".locks"


class Workers:
    """This process among a study's workers.

    ``writing`` may be entered again inside itself. Looking at a lock may take it for a moment, so whoever looks
    (``joined``, ``others``, ``take``, ``elsewhere``) does so while writing.
    """

    def __init__(self, study: Path, locks: Locks | None = None) -> None:
        """``locks`` are those of the study's folder; by default files in it."""
        self._locks = locks or FileLocks(study / FOLDER)
        self._writer, self._finish = self._locks.lock("writer"), self._locks.lock("finish")
        self._here: Lock | None = None
        self._slot = ""
        self.first = False  # nobody else was there when this one joined
        self._trials: dict[int, Lock] = {}

    @classmethod
    def of(cls, home: Path, name: str) -> Workers:
        """Among those of the study of that name. Raises StoreError where its locks cannot be used."""
        return cls(home / "studies" / name, Below(locks_of(home), f"studies/{name}/{FOLDER}"))

    @property
    def slowest(self) -> float:
        """Seconds between looks at what the others do, of one who waits for long."""
        return self._locks.slowest

    @contextmanager
    def joined(self) -> Iterator[None]:
        """One of the workers while the block runs. Raises StoreError where there are ``MOST`` already."""
        with self.writing():
            self._locks.tidy("worker-")
            held = self._locks.held("worker-")
            slots = (name for place in range(MOST) if (name := f"worker-{place}") not in held)
            for self._slot in slots:
                lock = self._locks.lock(self._slot)
                if lock.take():
                    self._here = lock
                    break
            self.first = not held
        if self._here is None:
            raise StoreError(f"{MOST} workers run this study already")
        try:
            yield
        finally:
            for number in list(self._trials):
                self.release(number)
            self._here.release()
            self._here, self._slot = None, ""

    def others(self) -> int:
        """How many other workers are there now; one of them may have this one's name, if this one lost it."""
        try:
            self.check()
            mine = self._slot
        except StoreError:
            mine = ""
        with self.writing():
            return sum(name != mine for name in self._locks.held("worker-"))

    def writing(self) -> Lock:
        """The lock to write under: the others wait."""
        return self._writer

    def reserving(self) -> Lock:
        """The lock to reserve under, a new one: threads of one worker wait for each other too."""
        return self._locks.lock("reserving")

    @contextmanager
    def finishing(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Ends the study alone: the others wait, are told so, and then find all of it done."""
        self._finish.wait(on_wait)
        try:
            yield
        finally:
            self._finish.release()

    def take(self, trial: int) -> bool:
        """Whether the trial is this worker's from now on: nobody runs it, or who did is gone."""
        if trial not in self._trials:
            lock = self._locks.lock(f"trial-{trial}")
            if not lock.take():
                return False
            self._trials[trial] = lock
        return True

    def elsewhere(self) -> set[int]:
        """The trials that other workers hold now."""
        held = {int(name.removeprefix("trial-")) for name in self._locks.held("trial-")}
        return held - self._trials.keys()

    def check(self) -> None:
        """Raises StoreError where this worker no longer holds what it works on: see ``Leases.check``."""
        for lock in (self._here, *self._trials.values()):
            if lock is not None:
                lock.check()

    def publish(self, spent: Mapping[str, Cost]) -> None:
        """What this worker has spent, by what for. Raises StoreError where it cannot be written."""
        if self._here is None:
            raise RuntimeError("join first")
        self._here.note({name: asdict(cost) for name, cost in spent.items()})

    def published(self) -> dict[str, Cost]:
        """What the other living workers have spent, by what for; work in flight by worker."""
        found: dict[str, Cost] = {}
        for worker, spent in self._locks.notes("worker-").items():
            if worker != self._slot:
                for name, cost in spent.items():
                    found[f"{name} {worker}" if name == FLYING else name] = Cost(**cost)
        return found

    def release(self, trial: int) -> None:
        """The trial is no longer this worker's."""
        self._trials.pop(trial).release()
