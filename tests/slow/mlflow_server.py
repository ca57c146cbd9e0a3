"""An MLflow server of one's own on a database, killed and started again as a test likes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postgres import free_port

from colever.tracking.store import OFFLINE


class MlflowServer:
    """One server, in its own process group; artifacts go through it."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder, self.port = (
            database.replace("postgresql:", "postgresql+psycopg:"),
            folder,
            free_port(),
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--serve-artifacts",
                   "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
                   "--port", str(self.port), "--workers", "1"]  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **OFFLINE}
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.3)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(database, folder)
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
