"""Leases and Optuna's trials in a real PostgreSQL: what locks promise, wrong passwords, a server that is killed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from lock_conformance import LocksConformance
from optuna.trial import TrialState
from postgres import PASSWORD, Postgres, postgres

from colever.database import Database
from colever.errors import StoreError
from colever.leases import Leases
from colever.locks import Locks
from colever.optimizers.trial_storage import open_storage
from colever.stores import stores_of

pytestmark = pytest.mark.slow
names = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def url(server: Postgres) -> str:
    """Of an empty database."""
    return server.make(f"d{next(names)}").replace("postgresql:", "postgresql+psycopg:")


class TestLeasesInPostgres(LocksConformance):
    @pytest.fixture
    def one(self, url: str) -> Locks:
        return Leases(Database(url))

    @pytest.fixture
    def other(self, url: str) -> Locks:
        return Leases(Database(url))


def test_many_who_begin_at_once_make_one_table(url: str) -> None:
    made: list[Leases] = []
    threads = [threading.Thread(target=lambda: made.append(Leases(Database(url)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(made) == 8


def test_a_lease_outlasts_a_server_that_is_killed_and_started_again(server: Postgres, url: str) -> None:
    one, other = Leases(Database(url), 30.0), Leases(Database(url), 30.0)
    lock = one.lock("trial-3")
    assert lock.take()
    server.kill()
    taken: list[bool] = []
    asks = threading.Thread(target=lambda: taken.append(other.lock("trial-3").take()))
    asks.start()
    time.sleep(1)
    server.start()
    asks.join(120)
    assert taken == [False]
    one.renew()
    lock.check()
    lock.release()
    assert other.lock("trial-3").take()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("colever@", "nobody@"), "password authentication failed"),
        (("/d", "/nowhere"), "does not exist"),
    ],
)
def test_a_server_that_refuses_says_why_at_once(url: str, change: tuple[str, str], said: str) -> None:
    wrong = url[::-1].replace(change[0][::-1], change[1][::-1], 1)[::-1]
    with pytest.raises(StoreError, match=said) as raised:
        Leases(Database(wrong, 600.0))
    assert PASSWORD not in str(raised.value)


def test_a_wrong_password_is_not_shown(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", url.replace("colever@", "colever:hush-hush@"))
    monkeypatch.setenv("PGPASSWORD", "")
    with pytest.raises(StoreError, match="password authentication failed") as raised:
        Leases(Database(stores_of(tmp_path).database))
    assert "hush-hush" not in str(raised.value)


def test_a_server_that_is_not_there_is_an_error_after_a_while(server: Postgres) -> None:
    nobody = f"postgresql+psycopg://colever@127.0.0.1:{server.port + 1 if server.port < 65535 else 1024}/colever"
    with pytest.raises(StoreError, match=r"not answered for 1 s.*refused"):
        Leases(Database(nobody, 1.0))


def test_trials_outlast_a_server_that_is_killed_amid_them(
    server: Postgres, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", url)
    study = optuna.create_study(storage=open_storage(tmp_path), study_name="s", load_if_exists=True)
    ended = threading.Event()

    def break_it() -> None:
        for _ in range(3):
            server.kill()
            time.sleep(0.3)
            server.start()
            time.sleep(0.7)
        ended.set()

    breaks = threading.Thread(target=break_it)
    breaks.start()
    made = 0
    while not ended.is_set() or made < 3:
        trial = study.ask()
        assert trial.number == made
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, step=0)
        trial.set_user_attr("rounds", ["k"])
        study.tell(trial, 0.5)
        made += 1
    breaks.join()
    trials = optuna.load_study(storage=open_storage(tmp_path), study_name="s").get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * made
    assert all(t.user_attrs == {"rounds": ["k"]} and t.params for t in trials)
