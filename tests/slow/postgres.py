"""A PostgreSQL of one's own: made in a folder, on a free port, killed and started again as a test likes."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "not-a-secret-9"


def binaries() -> Path:
    """The folder of ``initdb`` and ``postgres``; skips the test where there is none."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'colever[cluster]'")
    found = shutil.which("initdb")
    folders = [
        *sorted(glob.glob("/usr/lib/postgresql/*/bin"))[::-1],
        *([Path(found).resolve().parent] if found else []),
    ]
    for folder in folders:
        if (Path(folder) / "postgres").exists():
            return Path(folder)
    pytest.skip("needs PostgreSQL's own programs, initdb and postgres (on Debian: apt install postgresql)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """One server. ``url(name)`` is a database of it, with no password in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self._bin = folder, free_port(), binaries()
        self._as: list[str] = []
        if os.geteuid() == 0:  # it refuses to run as root
            user = next(u for u in ("postgres", "nobody") if _exists(u))
            os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            self._as = ["setpriv", f"--reuid={user}", "--clear-groups", "--"]
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        self._run("initdb", "-D", str(folder / "data"), "-U", "colever", "-A", "scram-sha-256",
                  "--pwfile", str(folder / "password"), "--no-sync")  # fmt: skip
        self.start()

    def url(self, name: str = "colever") -> str:
        return f"postgresql://colever@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        command = [*self._as, str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port),
                   "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), password=PASSWORD).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the server and all that it started."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def make(self, name: str) -> str:
        """A new database's URL."""
        import psycopg

        with psycopg.connect(self.url("postgres"), password=PASSWORD, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([*self._as, str(self._bin / program), *arguments], check=True, capture_output=True)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server while the block runs, in a folder that its user can reach."""
    binaries()
    folder = Path(tempfile.mkdtemp(prefix="colever-postgres-", dir="/tmp"))
    folder.chmod(0o711)
    server = None
    try:
        server = Postgres(folder)
        yield server
    finally:
        if server is not None and server.process is not None and server.process.poll() is None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)
