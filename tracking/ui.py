"""MLflow's UI on this home folder: started so that it works without a network, opened at a study's arms.

Knows processes and addresses; knows nothing of what a run holds. The server is a child in its own process group,
and goes when it is closed, on Ctrl-C and on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colever.errors import InfrastructureError, UsageError
from colever.tracking import store
from colever.tracking.view import fragment, quoted, study_views

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

START_SECONDS = 120.0  # a busy two-core machine needs ten


class UiServer:
    """A running server. ``url`` opens the study; ``close`` ends it and every process it started."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def wait(self) -> int:
        """Until the server ends by itself; its exit status."""
        return self.process.wait()

    def close(self) -> None:
        """SIGTERM, then SIGKILL after five seconds, to the whole group."""
        for sign, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                return


def serve(
    home: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    open_browser: bool = True,
    *,
    study_or_task: str | None = None,
    announce: Callable[[str], None] | None = None,
) -> str:
    """Serve the UI until Ctrl-C (or SIGTERM); returns the address that opened the study. A home's server runs already.

    ``announce`` is told the address once the server answers. Raises UsageError for a port in use or an unknown
    study, InfrastructureError if the server does not come up or ends by itself.
    """
    if address := store.server(home):  # it runs already
        url = f"{address}/{deep_link(home, study_or_task)}"
        if announce is not None:
            announce(url)
        if open_browser:
            webbrowser.open(url)
        return url
    with (
        _stop_on_sigterm(),
        start(home, host, port, study_or_task=study_or_task) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if announce is not None:
            announce(server.url)
        if open_browser:
            webbrowser.open(server.url)
        status = server.wait()
        raise InfrastructureError(f"the MLflow server ended by itself with exit status {status}")
    return server.url


@contextlib.contextmanager
def start(
    home: Path, host: str = "127.0.0.1", port: int = 5000, *, study_or_task: str | None = None
) -> Iterator[UiServer]:
    """A server that answers, for the length of a ``with`` block. Raises as ``serve`` does."""
    _check_port(host, port)
    address = f"http://{host}:{port}/{deep_link(home, study_or_task)}"
    log = home / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(home, host, port),
            env={**os.environ, **store.OFFLINE},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = UiServer(process, address)
    try:
        _wait_until_healthy(process, f"http://{host}:{port}/health", log)
        yield server
    finally:
        server.close()


def deep_link(home: Path, study_or_task: str | None = None) -> str:
    """The address's part after the server's own: this study, or the latest one (of the task named).

    ``#/experiments`` where there is no study yet. Raises UsageError for a name that is neither and for a home without
    a database (one is not made here), StoreError for a database that cannot be read.
    """
    if not store.server(home) and not store.database(home).is_file():
        raise UsageError(
            f"no study was run in {home}: there is no {store.database(home).name}; "
            "accepted: the --home of a study, such as `colever sweep arithmetic` makes"
        )
    client = store.open_client(home)
    with store.guarded(home):
        studies = _studies(client)
    if study_or_task is not None:
        matching = [r for r in studies if r.data.tags["study"] == study_or_task]
        matching = matching or [r for r in studies if r.data.tags["task"] == study_or_task]
        if not matching:
            known = ", ".join(sorted({r.data.tags["study"] for r in studies})) or "none yet"
            raise UsageError(f"no study or task {study_or_task!r} in {home}; studies: {known}")
        studies = matching
    if not studies:
        return "#/experiments"
    run = studies[0]
    return fragment(run.info.experiment_id, study_views(run.data.tags["study"], "gold")[0])


def _studies(client: MlflowClient) -> list[Run]:
    """Study runs of every task, the latest first."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`kind` = {quoted('study')}"
    return list(client.search_runs(experiments, query, order_by=["attributes.start_time DESC"])) if experiments else []


def _command(home: Path, host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", store.tracking_uri(home)),
        *("--default-artifact-root", store.artifacts(home).as_uri()),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise UsageError(f"--port {port}: accepted: 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"--port {port} on {host}: {error.strerror}; choose another with --port") from error


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing in its log"]
            raise InfrastructureError(f"the MLflow server did not start: {tail[0]} (all of it: {log})")
        if _answers(address):
            return
        time.sleep(0.2)
    raise InfrastructureError(f"the MLflow server did not answer within {START_SECONDS:.0f} s; see {log}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """In the main thread, SIGTERM does what Ctrl-C does, so that the server is not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
