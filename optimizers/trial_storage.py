"""Optuna's storage of a home: sqlite in it, or a database that several machines share and that may be away for a while.

Knows Optuna's storages and databases; knows nothing of trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from colever.database import Database, engine_arguments
from colever.locks import locks_of
from colever.stores import stores_of


def open_storage(home: Path) -> BaseStorage:
    """The home's, made where there is none. Raises StoreError where its database cannot be used."""
    url = stores_of(home).database
    if not url:
        return _in_home(home)
    database = Database(url)
    with locks_of(home).lock("optuna"):  # two that make its tables at once would be in each other's way
        made = database.opened(lambda: RDBStorage(url, engine_kwargs=engine_arguments(url)))
    return PatientStorage(optuna.storages.get_storage(made), database)


def _in_home(home: Path) -> RDBStorage:
    path = home / "optuna.db"
    with FileLock(home / "optuna.lock"):
        if not path.exists():  # made aside and renamed: a kill leaves no half-made database
            fresh = home / ".optuna.db.tmp"
            fresh.unlink(missing_ok=True)
            made = _sqlite(fresh)
            made.remove_session()
            made.engine.dispose()
            fresh.replace(path)
        return _sqlite(path)


def _sqlite(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def _waited(name: str) -> Callable[..., Any]:
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        operation = getattr(self._inner, name)
        return self._database.waited(lambda: operation(*arguments, **named))

    return call


# Every operation of a storage, waited for: Optuna's list of them is the one that counts.
_Waiting: Any = type("_Waiting", (BaseStorage,), {name: _waited(name) for name in BaseStorage.__abstractmethods__})


class PatientStorage(_Waiting):
    """A storage whose operations wait while the database is away, and are then made once, not twice.

    An operation whose answer was lost may have been done. Most set a value and may be made again; a new trial and a
    trial's end are looked for first. One worker writes at a time (``Workers.writing``).
    """

    def __init__(self, inner: BaseStorage, database: Database) -> None:
        self._inner, self._database = inner, database

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        before = self.get_n_trials(study_id)

        def again() -> int:
            trials = self._inner.get_all_trials(study_id, deepcopy=False)
            return trials[-1]._trial_id if len(trials) > before else call()

        def call() -> int:
            return self._inner.create_new_trial(study_id, template_trial)

        return self._database.waited(call, again=again)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def again() -> bool:
            done = state.is_finished() and self._inner.get_trial(trial_id).state is state
            return done or call()

        def call() -> bool:
            return self._inner.set_trial_state_values(trial_id, state, values)

        return self._database.waited(call, again=again)
