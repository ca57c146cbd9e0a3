"""Locks as files and as leases: one holder at a time; a lease that is not renewed is another's, which is said."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from lock_conformance import LocksConformance
from sqlalchemy.exc import OperationalError

from colever.database import Database, is_passing
from colever.errors import StoreError
from colever.leases import Leases
from colever.locks import Below, FileLocks, Locks, locks_of


class Killed(Leases):
    """Of a process that is gone: renews nothing and gives nothing back."""

    def renew(self) -> None:
        return None

    def close(self) -> None:
        return None


def leases(folder: Path, kind: type[Leases] = Leases, lasts: float = 60.0) -> Leases:
    return kind(Database(f"sqlite:///{folder / 'locks.db'}"), lasts)


class TestFileLocks(LocksConformance):
    @pytest.fixture
    def one(self, tmp_path: Path) -> Locks:
        return FileLocks(tmp_path)

    @pytest.fixture
    def other(self, tmp_path: Path) -> Locks:
        return FileLocks(tmp_path)


class TestLocksBelowAFolder(LocksConformance):
    @pytest.fixture
    def one(self, tmp_path: Path) -> Locks:
        return Below(FileLocks(tmp_path), "studies/toy/.locks")

    @pytest.fixture
    def other(self, tmp_path: Path) -> Locks:
        return FileLocks(tmp_path / "studies" / "toy" / ".locks")


class TestLeases(LocksConformance):
    @pytest.fixture
    def one(self, tmp_path: Path) -> Locks:
        return leases(tmp_path)

    @pytest.fixture
    def other(self, tmp_path: Path) -> Locks:
        return leases(tmp_path)


def test_locks_are_files_unless_the_home_names_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", "")
    assert isinstance(locks_of(tmp_path), FileLocks)
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path / 'locks.db'}")
    assert isinstance(locks_of(tmp_path), Leases)
    assert locks_of(tmp_path) is locks_of(tmp_path / "other")


def test_what_a_killed_process_held_is_anothers_when_it_has_expired(tmp_path: Path) -> None:
    killed, other = leases(tmp_path, Killed, 1.0), leases(tmp_path)
    assert killed.lock("trial-3").take()
    assert killed.lock("worker-0").take()
    lock = other.lock("trial-3")
    lock.wait()
    assert other.held("trial-") == ["trial-3"]
    assert lock.take()


def test_a_lease_that_is_renewed_outlasts_its_time(tmp_path: Path) -> None:
    one, other = leases(tmp_path, lasts=2.0), leases(tmp_path)
    lock = one.lock("trial-3")
    assert lock.take()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        one.renew()  # as its thread does, however late that is on a busy machine
        assert not other.lock("trial-3").take()
        time.sleep(0.1)
    lock.check()


def test_who_has_lost_a_lease_is_told_and_does_not_give_back_anothers(tmp_path: Path) -> None:
    one, other = leases(tmp_path, Killed, 0.5), leases(tmp_path)
    lost, kept = one.lock("trial-3"), one.lock("trial-4")
    assert lost.take()
    assert kept.take()
    theirs = other.lock("trial-3")
    theirs.wait()
    lost.check()
    Leases.renew(one)  # it was asleep
    with pytest.raises(StoreError, match=r"hold on trial-3 was lost.*run the same command again"):
        lost.check()
    kept.check()  # nobody has taken it meanwhile
    lost.release()
    assert not one.lock("trial-3").take()
    theirs.check()


def test_all_is_given_back_at_the_end(tmp_path: Path) -> None:
    one, other = leases(tmp_path), leases(tmp_path)
    assert all(one.lock(name).take() for name in ("a", "b"))
    one.close()
    assert other.held("") == []


def test_a_statement_whose_answer_was_lost_is_no_obstacle_when_it_is_sent_again(tmp_path: Path) -> None:
    one = leases(tmp_path)
    whole, lost = one.database.waited, []

    def loses(call, *arguments, **named):
        def first():
            found = call()
            if not lost:
                lost.append(found)
                raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))
            return found

        return whole(first, *arguments, **named)

    one.database.waited = loses  # type: ignore[method-assign]
    assert one.lock("a").take()
    assert lost
    assert not one.lock("a").take()


def test_a_database_that_is_away_is_waited_for_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database, told = Database(f"sqlite:///{tmp_path / 'x.db'}", 60.0), []

    def call() -> str:
        told.append(1)
        if len(told) < 4:
            raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))
        return "here"

    with caplog.at_level(logging.WARNING):
        assert database.waited(call) == "here"
    assert [r.message.split(" after")[0].split(", waiting")[0] for r in caplog.records] == [
        "the database is away",
        "the database is back",
    ]


def test_a_database_that_stays_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not answered for 0 s.*database is locked"):
        Database(f"sqlite:///{tmp_path / 'x.db'}", 0.0).waited(
            lambda: (_ for _ in ()).throw(OperationalError("", {}, sqlite3.OperationalError("database is locked")))
        )


def test_a_database_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        leases(tmp_path / "nowhere")


def test_another_error_comes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        Database(f"sqlite:///{tmp_path / 'x.db'}").waited(lambda: {}["a"])


def test_a_busy_database_passes_and_a_broken_one_does_not() -> None:
    assert is_passing(sqlite3.OperationalError("database is locked"))
    assert not is_passing(sqlite3.DatabaseError("file is not a database"))


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    lock, order = leases(tmp_path).lock("writer"), []

    def work(name: str) -> None:
        with lock:
            order.extend([name, name])

    threads = [threading.Thread(target=work, args=(n,)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order in (list("aabb"), list("bbaa"))
