"""A Ceph cluster with an S3 gateway, as processes of this one: a monitor, an OSD that keeps all in memory, a gateway.

Debian has it: apt-get install radosgw ceph-mon ceph-osd. Nothing is left when it is closed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
CONFIG = """
[global]
fsid = {fsid}
ms bind ipv4 = true
public network = 127.0.0.0/8
mon host = v1:127.0.0.1:{mon}/0
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
mon allow pool size one = true
mon max pg per osd = 1000
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw thread pool size = 16
"""


def installed() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


class Ceph:
    """A cluster below ``folder``; its ``address`` is the gateway's."""

    def __init__(self, folder: Path) -> None:
        self._port, self._config = _free_port(), folder / "ceph.conf"
        self.address = f"http://127.0.0.1:{self._port}"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        try:
            self._make(folder)
        except BaseException:  # an interrupt too: what is held is let go, then it goes on up
            self.close()
            raise

    def _make(self, folder: Path) -> None:
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir(parents=True)
        fsid, osd, mon = str(uuid.uuid4()), str(uuid.uuid4()), _free_port()
        self._config.write_text(CONFIG.format(fsid=fsid, folder=folder, mon=mon, gateway=self._port))
        monmap = str(folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon}/0]", monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._daemons.append(self._start("ceph-mon", "-i", "a"))
        self._run("ceph", "osd", "new", osd, "0")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemons.append(self._start("ceph-osd", "-i", "0"))
        self.open()

    def user(self, name: str, secret: str) -> None:
        """One who may make buckets; the name is the access key too."""
        keys = (f"--display-name={name}", f"--access-key={name}", f"--secret-key={secret}")
        self._run("radosgw-admin", "-n", "client.admin", "user", "create", f"--uid={name}", *keys)

    def open(self) -> None:
        """Start the gateway, and wait until it answers."""
        self._gateway = self._start("radosgw", "-n", "client.admin")
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                if time.monotonic() > end or self._gateway.poll() is not None:
                    raise
                time.sleep(0.2)

    def shut(self) -> None:
        """Kill the gateway; what is stored stays with the others."""
        if self._gateway is not None:
            self._gateway.kill()
            self._gateway.wait()

    def close(self) -> None:
        self.shut()
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, *arguments] if program == "monmaptool" else [program, "-c", str(self._config), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [program, "-f", "-c", str(self._config), *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
