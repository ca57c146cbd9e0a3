"""Locks as leases in a database that several machines share: held as long as they are renewed, by the database's clock.

A process that is killed, or a node that is lost, renews no more, and after ``lasts`` seconds another one takes what it
held. A database that is away lets nobody take anything either: whoever comes back in time renews. Taking one is one
statement, and renewing all of a process's is one. Knows SQL; knows nothing of what is locked.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import bindparam, text

from colever.database import Database, cause_of, is_passing
from colever.errors import StoreError

LASTS = 60.0  # seconds
LASTS_VARIABLE = "COLEVER_LEASE_SECONDS"
CLOCKS = {
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}
TABLE = """CREATE TABLE IF NOT EXISTS colever_leases (name VARCHAR(500) PRIMARY KEY, owner VARCHAR(200) NOT NULL,
token VARCHAR(40) NOT NULL, expires DOUBLE PRECISION NOT NULL, note TEXT)"""
# A statement whose answer was lost is sent again: its own lease, known by the token, is no obstacle then.
TAKE = """INSERT INTO colever_leases AS held (name, owner, token, expires, note)
VALUES (:name, :owner, :token, {clock} + :lasts, NULL)
ON CONFLICT (name) DO UPDATE
SET owner = excluded.owner, token = excluded.token, expires = excluded.expires, note = NULL
WHERE held.expires < {clock} OR held.token = excluded.token
RETURNING name"""
RENEW = "UPDATE colever_leases SET expires = {clock} + :lasts WHERE token IN :tokens RETURNING token"
RELEASE = "DELETE FROM colever_leases WHERE token = :token"
RELEASE_ALL = "DELETE FROM colever_leases WHERE owner = :owner"
NOTE = "UPDATE colever_leases SET note = :note WHERE token = :token"
BEGINS = "substr(name, 1, length(:first)) = :first"
HELD = f"SELECT name, note FROM colever_leases WHERE {BEGINS} AND expires >= {{clock}}"
TIDY = f"DELETE FROM colever_leases WHERE {BEGINS} AND expires < {{clock}} - :lasts"
SHORTEST, LONGEST = 0.02, 5.0  # seconds between looks of one who waits: a tenth of what it has waited
_log = logging.getLogger(__name__)


class Leases:
    """All that one process holds in one database; a thread renews it. Raises StoreError as ``Database`` does."""

    slowest = LONGEST

    def __init__(self, database: Database, lasts: float | None = None) -> None:
        self.database = database
        self.lasts = lasts if lasts is not None else float(os.environ.get(LASTS_VARIABLE) or LASTS)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._clock = CLOCKS[database.engine.dialect.name]
        self._held: dict[str, str] = {}  # token -> name
        self._lost: dict[str, str] = {}
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._renewer: threading.Thread | None = None
        database.opened(self._make_table)
        atexit.register(self.close)

    def lock(self, name: str) -> LeaseLock:
        return LeaseLock(self, name)

    def held(self, first: str) -> list[str]:
        """The names that begin so and are held by anyone."""
        return sorted(name for name, _ in self._run(HELD, first=first))

    def notes(self, first: str) -> Mapping[str, Any]:
        """The notes of those that are held under names that begin so."""
        return {name: json.loads(note) for name, note in self._run(HELD, first=first) if note}

    def tidy(self, first: str) -> None:
        """Remove leases that are long over."""
        self._run(TIDY, first=first, lasts=self.lasts)

    def take(self, name: str) -> str | None:
        """The token of a new lease, or None where another one holds it."""
        token = secrets.token_hex(16)
        if not self._run(TAKE, name=name, owner=self.owner, token=token, lasts=self.lasts):
            return None
        with self._guard:
            self._held[token] = name
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew_always, name="leases", daemon=True)
                self._renewer.start()
        return token

    def release(self, token: str) -> None:
        """Give it back: where the database is away, it expires."""
        with self._guard:
            self._held.pop(token, None)
            lost = self._lost.pop(token, None)
        if lost is None and not self._ended.is_set():
            self._run(RELEASE, token=token)

    def write_note(self, token: str, note: Any) -> None:
        """What others read beside the lease's name."""
        self._run(NOTE, token=token, note=json.dumps(note))

    def check(self, token: str) -> None:
        """Raises StoreError where the lease was lost: another process may have it."""
        if (name := self._lost.get(token)) is not None:
            raise StoreError(
                f"this process's hold on {name} was lost: it was not renewed for {self.lasts:.0f} s, and another one "
                "may have it now. What was finished is stored: run the same command again to work along"
            )

    def close(self) -> None:
        """Give all back; one that cannot be given back expires."""
        self._ended.set()
        if not self._held:
            return
        try:
            with self.database.engine.connect() as connection:
                connection.execute(text(RELEASE_ALL), {"owner": self.owner})
        except Exception as error:
            if cause_of(error) is None:
                raise
        self._held.clear()

    def renew(self) -> None:
        """All that are held; those that another process has are lost."""
        with self._guard:
            tokens = list(self._held)
        if not tokens:
            return
        statement = text(RENEW.format(clock=self._clock)).bindparams(bindparam("tokens", expanding=True))
        with self.database.engine.connect() as connection:
            renewed = set(connection.execute(statement, {"tokens": tokens, "lasts": self.lasts}).scalars())
        with self._guard:  # those that were released meanwhile are no longer held
            for token in set(tokens) - renewed & set(self._held):
                if (name := self._held.pop(token, None)) is not None:
                    self._lost[token] = name
                    _log.warning("the hold on %s was lost: it was not renewed for %.0f s", name, self.lasts)

    def _renew_always(self) -> None:
        pause = self.lasts / 6
        while not self._ended.wait(pause * random.uniform(0.9, 1.1)):
            try:
                self.renew()
                pause = self.lasts / 6
            except Exception as error:
                cause = cause_of(error)
                if cause is None or self._ended.is_set():
                    raise
                if is_passing(cause):
                    self.database.is_away(cause)
                pause = min(1.0, self.lasts / 20)

    def _run(self, statement: str, **values: Any) -> list[Any]:
        made = text(statement.format(clock=self._clock))

        def call() -> list[Any]:
            with self.database.engine.connect() as connection:
                result = connection.execute(made, values)
                return list(result) if result.returns_rows else []

        return self.database.waited(call)

    def _make_table(self) -> None:
        try:
            self._create()
        except Exception as error:
            if getattr(cause_of(error), "sqlstate", None) not in ("23505", "42P07"):  # another one makes it now
                raise
            self._create()

    def _create(self) -> None:
        with self.database.engine.connect() as connection:
            connection.execute(text(TABLE))


class LeaseLock:
    """One name's lock, which its thread may take again; another ``LeaseLock`` of the name excludes it."""

    def __init__(self, leases: Leases, name: str) -> None:
        self._leases, self.name = leases, name
        self._here = threading.RLock()
        self._depth, self._token = 0, ""

    def take(self) -> bool:
        """Whether it is held from now on; never waits."""
        if not self._here.acquire(blocking=False):
            return False
        if self._depth == 0:
            try:
                token = self._leases.take(self.name)
            except BaseException:  # an interrupt too: what is held is let go, then it goes on up
                self._here.release()
                raise
            if token is None:
                self._here.release()
                return False
            self._token = token
        self._depth += 1
        return True

    def wait(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Take it when it is free; ``on_wait`` is called once if it is not."""
        started = time.monotonic()
        if self.take():
            return
        on_wait()
        while True:
            pause = min(max((time.monotonic() - started) / 10, SHORTEST), LONGEST)
            time.sleep(pause * random.uniform(0.5, 1.5))
            if self.take():
                return

    def release(self) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                self._leases.release(self._token)
        finally:
            self._here.release()

    def note(self, value: Any) -> None:
        """What others read of it while it is held."""
        self._leases.write_note(self._token, value)

    def check(self) -> None:
        """Raises StoreError where it is no longer held."""
        self._leases.check(self._token)

    def __enter__(self) -> LeaseLock:
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
