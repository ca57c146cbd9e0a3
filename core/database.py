"""A database that several machines share: opened, with a clear error if it cannot be, and waited for while it is away.

Knows SQLAlchemy and what drivers say of a server that is gone; knows no tables.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from colever.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

T = TypeVar("T")
OPENING = 30.0  # seconds that a command waits for a database that is not there when it begins
PATIENCE = 300.0  # seconds that work under way waits for one that has gone
WAIT_VARIABLE = "COLEVER_DATABASE_WAIT"  # seconds in the place of both
LONGEST_PAUSE = 5.0
# A dead server is found within a minute, though it says nothing; nothing is prepared, as poolers want it.
ARGUMENTS: dict[str, Any] = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 30_000, "prepare_threshold": None, "application_name": "colever",
}  # fmt: skip
# Lost connections, no room for one more, a shutdown or start, a standby that is not the primary yet, a deadlock.
PASSING = re.compile("08...|53[0234]..|57P0[1235]|25006|40001|40P01")
PASSING_KINDS = ("OperationalError", "InterfaceError", "ConnectionTimeout", "PendingRollbackError")
LASTING = re.compile("authentication failed|no password supplied|does not exist|pg_hba.conf|certificate|permission")
_log = logging.getLogger(__name__)


class Database:
    """One process's way to it. A connection is made when it is needed, and one at a time is kept."""

    def __init__(self, url: str, patience: float | None = None) -> None:
        """Raises StoreError where the driver is missing."""
        asked = os.environ.get(WAIT_VARIABLE)
        self.patience = patience if patience is not None else float(asked or PATIENCE)
        self._opening = min(OPENING, self.patience)
        self.url, self.shown = url, make_url(url).render_as_string(hide_password=True)
        self._away_since: float | None = None
        self._guard = threading.Lock()
        try:
            self.engine: Engine = create_engine(url, isolation_level="AUTOCOMMIT", **engine_arguments(url))
        except ModuleNotFoundError as error:
            raise StoreError(
                f"{self.shown} needs {error.name}, which is not installed: pip install 'colever[cluster]'"
            ) from error

    def opened(self, call: Callable[[], T]) -> T:
        """The first call: as ``waited``, but for a shorter time."""
        return self.waited(call, self._opening)

    def waited(self, call: Callable[[], T], patience: float | None = None, again: Callable[[], T] | None = None) -> T:
        """What ``call`` returns; while the database is away it is made again, ``again`` in its place if given.

        Raises StoreError where the database stays away or refuses; other errors come as they are.
        """
        patience, pause = self.patience if patience is None else patience, 0.1
        started = time.monotonic()
        while True:
            try:
                found = call()
            except Exception as error:
                cause = cause_of(error)
                if cause is None:
                    raise
                if not is_passing(cause):
                    raise StoreError(f"the database {self.shown}: {said(cause)}") from error
                if time.monotonic() - started >= patience:
                    raise StoreError(
                        f"the database {self.shown} has not answered for {patience:.0f} s ({said(cause)}). Finished "
                        "rounds are stored: run the same command again when it is back"
                    ) from error
                self.is_away(cause)
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause, call = min(2 * pause, LONGEST_PAUSE), again or call
            else:
                self.is_back()
                return found

    def is_away(self, cause: BaseException) -> None:
        """One line, once, until it is back."""
        with self._guard:
            if self._away_since is not None:
                return
            self._away_since = time.monotonic()
        _log.warning("the database is away, waiting up to %.0f s: %s", self.patience, said(cause))

    def is_back(self) -> None:
        with self._guard:
            since, self._away_since = self._away_since, None
        if since is not None:
            _log.warning("the database is back after %.0f s", time.monotonic() - since)


def engine_arguments(url: str) -> dict[str, Any]:
    """What an engine on this URL is made with; what the URL itself says of a connection stays."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    given = make_url(url).query
    arguments = {key: value for key, value in ARGUMENTS.items() if key not in given}
    return {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 10, "connect_args": arguments}


def cause_of(error: BaseException | None) -> BaseException | None:
    """The driver's error that this one is, or was raised from; None where no database is at fault."""
    while error is not None:
        if isinstance(error, DBAPIError):
            return error.orig
        if isinstance(error, PendingRollbackError):  # Optuna catches some of the first kind, and goes on
            return error
        error = error.__cause__
    return None


def is_passing(cause: BaseException) -> bool:
    """Whether it is one of a database that is away or busy, not of one that refuses."""
    state = getattr(cause, "sqlstate", None)
    if state:
        return PASSING.fullmatch(state) is not None
    if type(cause).__module__.startswith("sqlite3"):
        return "locked" in str(cause) or "busy" in str(cause)
    return type(cause).__name__ in PASSING_KINDS and not LASTING.search(str(cause))


def said(cause: BaseException) -> str:
    """In one line; drivers show no password."""
    return "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())[:300] or type(cause).__name__
