"""Trials in a database whose answers get lost: each is made and ended once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from colever.database import Database
from colever.optimizers.trial_storage import PatientStorage, open_storage


class Forgetful(RDBStorage):
    """Does what it is told and, once for each name in ``loses``, loses the answer on the way."""

    loses: set[str]

    def _lost(self, name: str, answer: Any) -> Any:
        if name in self.loses:
            self.loses.remove(name)
            raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))
        return answer

    def create_new_trial(self, *arguments: Any, **named: Any) -> int:
        return self._lost("create", super().create_new_trial(*arguments, **named))

    def set_trial_state_values(self, trial_id: int, state: TrialState, *values: Any, **named: Any) -> bool:
        done = super().set_trial_state_values(trial_id, state, *values, **named)
        return self._lost("end" if state.is_finished() else "begin", done)

    def set_trial_param(self, *arguments: Any, **named: Any) -> None:
        return self._lost("param", super().set_trial_param(*arguments, **named))

    def set_trial_user_attr(self, *arguments: Any, **named: Any) -> None:
        return self._lost("attr", super().set_trial_user_attr(*arguments, **named))

    def set_trial_intermediate_value(self, *arguments: Any, **named: Any) -> None:
        return self._lost("report", super().set_trial_intermediate_value(*arguments, **named))


def test_what_was_done_before_the_answer_was_lost_is_not_done_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    inner = Forgetful(url)
    inner.loses = {"create", "end", "param", "attr", "report"}
    storage = PatientStorage(inner, Database(url, 60.0))
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("rounds", ["k"])
    trial.report(0.25, step=0)
    study.tell(trial, 0.5)
    assert not inner.loses
    (made,) = optuna.load_study(storage=url, study_name="s").trials
    assert (made.number, made.state, made.value) == (0, TrialState.COMPLETE, 0.5)
    assert (made.user_attrs, made.intermediate_values, list(made.params)) == ({"rounds": ["k"]}, {0: 0.25}, ["x"])


def test_a_trial_that_was_lined_up_and_begun_unheard_stays_to_be_taken_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    inner = Forgetful(url)
    inner.loses = {"begin"}
    study = optuna.create_study(storage=PatientStorage(inner, Database(url, 60.0)))
    study.enqueue_trial({"x": 1.0})
    other = study.ask()
    assert other.number == 1
    assert [t.state for t in study.get_trials()] == [TrialState.RUNNING, TrialState.RUNNING]


def test_it_is_the_homes_own_file_unless_it_names_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", "")
    assert isinstance(open_storage(tmp_path), RDBStorage)
    assert (tmp_path / "optuna.db").exists()
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path / 'shared.db'}")
    for _ in range(2):
        assert isinstance(open_storage(tmp_path), PatientStorage)
