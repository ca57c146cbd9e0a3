"""Where MLflow's runs and artifacts lie, below the home folder or at a server that it names, and how they are opened.

    <home>/mlflow.db              experiments, runs, metrics, tags
    <home>/artifacts/<task>/…     candidates, figures, reports

Knows paths, locks and errors; knows nothing of studies. Every failure of either becomes a StoreError here. A server
(``colever.stores``) keeps artifacts where it likes, and is waited for while it is away (``tracking/server``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from colever.errors import StoreError
from colever.locks import locks_of
from colever.stores import stores_of
from colever.tracking.server import await_server

if TYPE_CHECKING:
    from mlflow import MlflowClient

WAIT_SECONDS = 20.0  # for another process to let go of the database
OFFLINE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Either one keeps `mlflow server` from hanging without a network; the first also saves eight processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
# Schema migrations, run by run, and tracebacks of errors that are raised again as StoreError.
_NOISY = {"alembic": logging.WARNING, "mlflow": logging.ERROR, "mlflow.store.db.utils": logging.CRITICAL}


def database(home: Path) -> Path:
    return home.resolve() / "mlflow.db"


def server(home: Path) -> str:
    """The address of the home's MLflow server; "" where its runs lie in its own database."""
    return stores_of(home).mlflow


def tracking_uri(home: Path) -> str:
    return server(home) or f"sqlite:///{database(home)}"


def artifacts(home: Path) -> Path:
    return home.resolve() / "artifacts"


def open_client(home: Path, wait: float = WAIT_SECONDS) -> MlflowClient:
    """A client on ``home``'s runs, their database made if there is none. Raises StoreError if they cannot be used."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    if address := server(home):
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # results alone go there
        await_server(address, wait)
        return _client(home, wait)
    try:
        artifacts(home).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"home folder {home}: {error.strerror}; choose another with --home") from error
    return _client(home, wait)


def _client(home: Path, wait: float) -> MlflowClient:
    with guarded(home, wait):
        from mlflow import MlflowClient

        for name, level in _NOISY.items():
            logging.getLogger(name).setLevel(level)
        if not server(home):
            _make_database(home)
        uri = tracking_uri(home)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


def experiment(client: MlflowClient, home: Path, task: str) -> str:
    """The id of a task's experiment, made if there is none, brought back if it was deleted."""
    if not server(home):
        return _experiment(client, home, task)
    with locks_of(home).lock("experiments.lock"):  # two studies that make one at once would be in each other's way
        return _experiment(client, home, task)


def _experiment(client: MlflowClient, home: Path, task: str) -> str:
    found = client.get_experiment_by_name(task)
    if found is None:
        folder = artifacts(home) / "".join(c if c.isalnum() or c in "-_." else "-" for c in task)
        location = None if server(home) else folder.as_uri()  # a server's artifacts lie where it was told
        return str(client.create_experiment(task, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _make_database(home: Path) -> None:
    """Where there is none: made aside and renamed, since a kill amid the migrations leaves one that never opens."""
    from mlflow import MlflowClient

    path = database(home)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return
        fresh = path.with_name(".mlflow.db.tmp")
        fresh.unlink(missing_ok=True)
        uri = f"sqlite:///{fresh}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        os.replace(fresh, path)


@contextlib.contextmanager
def guarded(home: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Wait until the database can be written, then run the block; its failures come out as StoreError."""
    path = server(home) or database(home)
    if isinstance(path, Path):
        _wait_until_free(path, wait)
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not _is_storage_error(error):
            raise
        kept = "" if isinstance(path, Path) else ". Finished rounds are stored: run the same command again"
        raise StoreError(f"MLflow store {path}: {_reason(error)}{kept}") from error


def _wait_until_free(path: Path, wait: float) -> None:
    """Take and give back sqlite's write lock, trying for ``wait`` seconds; a missing file is free."""
    deadline = time.monotonic() + wait
    while path.exists():
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0.25, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            return
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise StoreError(f"MLflow database {path}: {error}; move it away to begin a new one") from error
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"MLflow database {path} is busy: another process has held its write lock for {wait:.0f} s. "
                    "Finished rounds are stored; end that process and run the same command again"
                ) from error


def _is_storage_error(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | SQLAlchemyError | OSError)


def _reason(error: Exception) -> str:
    """The first line: SQLAlchemy's next ones are the statement and its parameters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
