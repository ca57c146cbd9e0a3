"""Programs that reach for the machine: other processes, files, the network. Nothing outside is read or changed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sandbox_parts import SMALL, WALLS, needs, run

from colever.tasks.sandbox import host
from colever.tasks.sandbox.host import Job, Level, check


@pytest.fixture(params=WALLS)
def wall(request) -> Level:
    return needs(request.param)


# --- the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()\ndef f(x): return 2",
        "import subprocess\ndef f(x): return len(subprocess.check_output(['echo', 'x']))",
        "import os\ndef f(x): os.execv('/bin/true', ['true'])",
        "import multiprocessing\ndef f(x):\n    with multiprocessing.Pool(2) as p: return p.map(abs, [2])[0]",
    ],
)
def test_no_process_and_no_program_is_started(source: str, wall: Level) -> None:
    assert run(source, wall).share == 0


def test_a_daemon_does_not_outlive_its_program(wall: Level, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    verdict = run(
        f"""
import os, time
def f(x):
    try:
        if not os.fork():
            os.setsid()
            if not os.fork():
                while True:
                    open({str(mark)!r}, 'w'); time.sleep(0.01)
            os._exit(0)
    except OSError: pass
    return x + 1
""",
        wall,
    )
    assert verdict.clean
    assert not mark.exists()


VICTIMS = {
    "parent": "os.kill(os.getppid(), 9)",
    "group": "os.kill(0, 9)",
    "group of the parent": "os.killpg(os.getpgid(os.getppid()), 9)",
    "everything": "os.kill(-1, 9)",
    "everything, one by one": "[kill(p) for p in range(1, 70000) if p != os.getpid()]",
    "Colever": "os.kill({pid}, 9)",
    "a thread of the parent": "ctypes.CDLL(None).syscall(200, os.getppid(), 9)",
    "by a file's owner": "fcntl.fcntl(0, fcntl.F_SETOWN, {pid})",
    "its limits": "resource.prlimit({pid}, resource.RLIMIT_NOFILE, (0, 0))",
    "ptrace": "trace({pid})",
    "memory": "open('/proc/{pid}/mem', 'r+b').read(1)",
    "priority": "os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_no_other_process_is_reached(victim: str, wall: Level) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        pid = os.getpid() if victim == "Colever" else bystander.pid
        before = os.getpriority(os.PRIO_PROCESS, pid)
        act = VICTIMS[victim].replace("{pid}", str(pid))
        source = f"""
import ctypes, fcntl, os, resource
def kill(process):
    try: os.kill(process, 9); reached.append(process)
    except OSError: pass
def trace(process):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, process, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'ptrace')
reached = []
def f(x):
    try: reached.append({act})
    except OSError as error: return error.errno
    return x + 1
"""
        verdict = run(source, wall, tests="f(1)\nassert True\nassert f(1) in (1, 2, 3, 10, 13, 22, 38)")
        assert verdict.total == 1, verdict
        assert bystander.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, pid) == before
        assert psutil.Process(bystander.pid).status() != psutil.STATUS_STOPPED
    finally:
        bystander.kill()
        bystander.wait()


FORBIDDEN = {
    "write": "open(path, 'w').write('x')",
    "append": "open(path, 'a').write('x')",
    "remove": "os.remove(path)",
    "rename": "os.rename(path, path + '2')",
    "truncate": "os.truncate(path, 0)",
    "open and truncate": "os.open(path, os.O_RDONLY | os.O_TRUNC)",
    "rights": "os.chmod(path, 0)",
    "owner": "os.chown(path, 1, 1)",
    "times": "os.utime(path, (0, 0))",
    "folder": "os.mkdir(path + '3')",
    "link": "os.symlink(path, path + '4')",
    "hard link": "os.link(path, path + '5')",
    "attribute": "os.setxattr(path, 'user.x', b'x')",
    "read": "open(path).read()",
    "list": "os.listdir(os.path.dirname(path))",
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_nothing_outside_is_read_or_changed(deed: str, wall: Level, tmp_path: Path) -> None:
    for path in (tmp_path / "file", Path(os.__file__).parent / "LICENSE.txt", Path(os.__file__).parent / "this.py"):
        if path.parent == tmp_path:
            path.write_text("before")
        elif not path.exists() or deed in ("read", "list"):
            continue
        seen = path.stat(), path.read_bytes(), sorted(path.parent.iterdir())
        source = f"""
import os
path = {str(path)!r}
def f(x):
    try: {FORBIDDEN[deed]}
    except OSError: return 'refused'
    return 'done'
"""
        verdict = run(source, wall, tests=["assert f(1) == 'refused'"])
        assert verdict.clean, (path, verdict)
        now = path.stat(), path.read_bytes(), sorted(path.parent.iterdir())
        assert (now[0].st_mode, now[0].st_mtime, now[0].st_uid, *now[1:]) == (
            seen[0].st_mode, seen[0].st_mtime, seen[0].st_uid, *seen[1:]
        )  # fmt: skip


def test_installed_packages_are_out_of_sight(wall: Level) -> None:
    """One of them may hold the data set whose tests judge the program."""
    folders = [Path(os.__file__).parent / "site-packages", Path("/usr/lib/python3/dist-packages")]
    files = [next((str(f) for f in folder.rglob("*") if f.is_file()), None) for folder in folders if folder.is_dir()]
    source = "def f(path):\n    try: return open(path).read()\n    except OSError: return 'refused'"
    tests = [f"assert f({path!r}) == 'refused'" for path in (pytest.__file__, *files) if path]
    assert run(source, wall, tests=tests).clean


def test_a_root_without_rights_is_as_good_as_a_user() -> None:
    """CAP_SYS_ADMIN is what a container's root lacks: a user's namespaces are tried then, or Landlock."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    script = (
        "from colever.tasks.sandbox.host import *; f = available(); print(f.level, check(Job(['def f(x): return x'],"
    )
    script += " [['f(1)', 1]], 'f'), isolation='best').clean)"
    command = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["True"], done.stderr


def test_these_tests_can_fail(tmp_path: Path) -> None:
    """With limits alone files can be read and emptied: the walls are what refuses it above."""
    level = needs("limits")
    (tmp_path / "file").write_text("before")
    path = repr(str(tmp_path / "file"))
    source = f"def f(x):\n    open({path}).read()\n    open({path}, 'w')\n    return x + 1"
    assert run(source, level).clean
    assert (tmp_path / "file").read_text() == ""


def test_scratch_is_small_and_gone_afterwards() -> None:
    level = needs("namespaces")
    source = """
import os, tempfile
def f(x):
    with tempfile.NamedTemporaryFile('w+') as file:
        file.write(str(x + 1)); file.seek(0)
        return int(file.read())
def fill():
    n = 0
    try:
        while True:
            with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(1 << 20))
            n += 1
    except OSError: return n
"""
    before = sorted(os.listdir("/tmp"))
    assert run(source, level).clean
    filled = check(Job([source], "assert fill() <= 4\nassert fill() >= 2", "fill"), SMALL, level=level)
    assert filled.clean, filled
    assert not [name for name in os.listdir("/tmp") if name.isdigit() and name not in before]


def test_landlock_has_no_scratch() -> None:
    level = needs("landlock")
    source = "def f(x):\n    try: open('/tmp/colever-none', 'w')\n    except OSError: return 'refused'\n"
    assert run(source, level, tests=["assert f(1) == 'refused'"]).clean
    assert not os.path.exists("/tmp/colever-none")


@pytest.mark.parametrize("kind", ["tcp", "udp", "unix", "abstract", "urllib", "datagram pair"])
def test_no_network_not_even_this_machines(kind: str, wall: Level, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")[-100:]
    families = {"unix": path, "abstract": f"\0colever-{os.getpid()}", "datagram pair": f"\0colever-d-{os.getpid()}"}
    family = socket.AF_UNIX if kind in families else socket.AF_INET
    stream = socket.SOCK_DGRAM if kind in ("udp", "datagram pair") else socket.SOCK_STREAM
    with socket.socket(family, stream) as server:
        server.bind(families.get(kind, ("127.0.0.1", 0)))
        server.settimeout(0.05)
        if stream == socket.SOCK_STREAM:
            server.listen()
        address = server.getsockname()
        address = address.decode() if isinstance(address, bytes) else address
        source = f"""
import socket, urllib.request
def f(x):
    try:
        if {kind!r} == 'urllib':
            urllib.request.urlopen('http://127.0.0.1:{address[1]}', timeout=5)
        elif {kind!r} == 'datagram pair':
            socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', {address!r})
        else:
            s = socket.socket({int(family)}, {int(stream)})
            s.connect({address!r}); s.send(b'x')
    except OSError: return 'refused'
    return 'connected'
"""
        assert run(source, wall, tests=["assert f(1) == 'refused'"]).clean
        with pytest.raises(TimeoutError):
            server.recv(1) if stream == socket.SOCK_DGRAM else server.accept()


def test_threads_and_the_standard_library_work(wall: Level) -> None:
    source = """
import asyncio, collections, decimal, heapq, hashlib, itertools, random, re, typing, zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

@dataclass
class Point:
    x: int

async def later(x):
    await asyncio.sleep(0)
    return Point(x).x + 1

def f(x):
    hashlib.sha256(zlib.compress(b'x')).hexdigest()
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda x: asyncio.run(later(x)), [x] * 8))[0]
"""
    assert run(source, wall) == host.Verdict(2, 2, True)
