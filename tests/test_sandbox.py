"""Escapes that generated programs try: each is contained, scored as a failure, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from sandbox_parts import ASSERTS, QUICK, SMALL, left_over, needs, run

from colever.errors import InfrastructureError, TaskError
from colever.tasks.sandbox import host
from colever.tasks.sandbox.host import Job, Level, Limits, check

GOOD = "def f(x):\n    return x + 1\n"
WALLS: tuple[Level, ...] = ("namespaces", "landlock")


@pytest.fixture(params=host.LEVELS)
def level(request) -> Level:
    return needs(request.param)


@pytest.fixture(params=WALLS)
def wall(request) -> Level:
    return needs(request.param)


# --- what counts -------------------------------------------------------------------------------------


def test_a_right_program_passes_and_a_wrong_one_has_its_share(level: Level) -> None:
    assert run(GOOD, level) == host.Verdict(2, 2, True)
    half = run("def f(x):\n    return 2\n", level)
    assert (half.passed, half.total, half.clean, half.share) == (1, 2, False, 0.5)
    assert half.reason == "1 of 2 tests pass: a result is wrong"


@pytest.mark.parametrize(
    ("tests", "passed", "total"),
    [
        (["assert f(1) == 2", "assert f(5) == 6", "assert f(0) == 0"], 2, 3),
        ([["f(1)", 2], ["f(f(1))", 3], ["[f(x) for x in range(2)]", [1, 2]], ["f('')", 0]], 3, 4),
        ("assert True\nassert f(1) == 2\n", 1, 1),  # a constant is no test
        ("for x in range(3):\n    assert f(x) < 3\n", 0, 1),  # passes twice, fails once
        ("value = f('text')\nassert value\nassert f(1) == 2\n", 0, 2),  # ends at its first line
        ("try:\n    f('')\nexcept TypeError:\n    pass\nassert f(1) == 2", 1, 1),
        (
            "import math\ndef check(g):\n    assert math.isclose(g(0.5), 1.5)\n    assert g(2 ** 70) == 2 ** 70 + 1",
            2,
            2,
        ),
    ],
)
def test_forms_of_tests(tests, passed: int, total: int) -> None:
    verdict = check(Job([GOOD], tests, "f"), SMALL, "best")
    assert (verdict.passed, verdict.total, verdict.clean) == (passed, total, passed == total)


@pytest.mark.parametrize(
    "value", ["None", "True", "-5", "2**200", "1.5", "float('inf')", "'é\\ud800'", "b'x'", "[1, [2]]", "(1, (2,))",
              "{1: {'a': (2,)}, (1, 2): None}", "{1, 2}", "frozenset({1})", "1 + 2j", "[]", "{}", "()"],
)  # fmt: skip
def test_plain_values_travel_both_ways(value: str) -> None:
    tests = f"assert f({value}) == {value}\nassert type(f({value})) is type({value})"
    assert check(Job(["def f(x): return x"], tests, "f"), SMALL, "best").clean


def test_setup_is_beside_the_tests_and_a_program_may_continue_it() -> None:
    setup = "import math\ndef helper(x):\n    return x * 2\n\ndef f(x):\n    '''Doubles.'''\n"
    tests = "def check(candidate):\n    assert candidate(helper(1)) == 4\n    assert candidate(math.floor(2.5)) == 4"
    for program in ("    return helper(x)\n", "def f(x):\n    return helper(x)\n", "def f(x): return x * 2"):
        assert check(Job([f"{setup}\n{program}", program], tests, "f", setup), SMALL, "best").clean, program


@pytest.mark.parametrize("tests", ["assert f(1) ==", "assert 1 == 1", "x = 1", "import sys\nsys.exit()", [["f(", 1]]])
def test_tests_that_cannot_be_used_are_an_error_and_no_score(tests) -> None:
    with pytest.raises(TaskError, match="the tests cannot be used"):
        check(Job([GOOD], tests, "f"), SMALL, "best")


# --- cheating ------------------------------------------------------------------------------------------

CHEATS = {
    "sys.exit(0) on import": "import sys\nsys.exit(0)",
    "sys.exit(0) in a call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit(0) on import": "import os\nos._exit(0)",
    "os._exit(0) in a call": "import os\ndef f(x): os._exit(0)",
    "exit through atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return None",
    "equal to everything": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "equal int": "class E(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return E(9)",
    "equal text": "class E(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef f(x): return E()",
    "equal list": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "patched builtins": """
import builtins
builtins.AssertionError = KeyError
builtins.Exception = builtins.BaseException
builtins.int = builtins.len = builtins.isinstance = lambda *a: True
def f(x): return 99
""",
    "patched json": """
import json, sys
json.dumps = lambda *a, **k: '{"passed": 2, "total": 2, "clean": true, "gone": null, "reason": ""}'
def f(x): return 99
""",
    "patched wire": """
import sys
wire = next(m for n, m in sys.modules.items() if n.endswith('wire'))
wire.encode = lambda *a, **k: type('E', (), {'__eq__': lambda s, o: True})()
def f(x): return 99
""",
    "patched checker": """
import sys
checker = next(m for n, m in sys.modules.items() if n.endswith('checker'))
checker.judge = lambda *a: {"passed": 2, "total": 2, "clean": True, "gone": None, "reason": ""}
def f(x): return 99
""",
    "prints the verdict": """
import json, os
verdict = json.dumps({"passed": 2, "total": 2, "clean": True, "gone": None, "reason": "", "nonce": "0" * 32}).encode()
for file in range(64):
    try: os.write(file, len(verdict).to_bytes(8, "big") + verdict)
    except OSError: pass
print(verdict)
def f(x): return 99
""",
    "answers before it is asked": """
import json, os
answer = json.dumps({"value": 2}).encode()
for file in range(3, 64):
    try: os.write(file, len(answer).to_bytes(8, "big") + answer)
    except OSError: pass
def f(x): return 99
""",
    "closes the pipes": "import os\nos.closerange(0, 64)\ndef f(x): return 2",
    "raises an assertion": "def f(x): raise AssertionError('passed')",
    "raises a base exception": "class B(BaseException): pass\ndef f(x): raise B",
    "raises what has no text": "class E(Exception):\n    def __str__(self): raise self\ndef f(x): raise E",
    "gigantic value": "def f(x): return 'x' * (1 << 20)",
    "gigantic list": "def f(x): return [0] * 10 ** 9",
    "nested value": "def f(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v",
    "value that holds itself": "def f(x):\n    v = []\n    v.append(v)\n    return v",
    "huge int": "def f(x): return 10 ** 10 ** 6",
    "huge int as text": "def f(x): return str(10 ** 10 ** 6)",
    "generator": "def f(x): yield 2",
    "no such function": "def g(x): return x + 1",
    "not Python": "I would write: return x + 1",
    "nul": "def f(x):\0 return 2",
    "surrogate": "def f(x): return '\ud800'",
    "deep source": "def f(x): return " + "(" * 5000 + ")" * 5000,
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self): "
    "return repr([self])\ndef f(x): return repr(A())",
    "segmentation fault": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "abort": "import os\ndef f(x): os.abort()",
    "10 GB": "def f(x): return len(bytearray(10 << 30))",
    "kills itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "input": "def f(x): return int(input())",
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_are_failures_at_the_level_of_this_machine(name: str) -> None:
    verdict = run(CHEATS[name], host.level_for("best"))
    assert not verdict.clean
    assert verdict.passed <= (1 if name == "answers before it is asked" else 0)  # 2 is a guess like another
    assert verdict.reason
    assert len(verdict.reason) < 500


def test_reasons_tell_nothing_that_is_expected() -> None:
    tests = "def check(g):\n    assert g(1) == 'secret', 'it is secret'\n    assert g(2) == 'secret'"
    verdict = check(Job(["def f(x):\n    return 1 // (2 - x)"], tests, "f"), SMALL, "best")
    assert verdict.reason == "0 of 2 tests pass: a result is wrong"
    verdict = check(Job(["def f(x):\n    return 1 // 0"], tests, "f"), SMALL, "best")
    assert verdict.reason == "0 of 2 tests pass: ZeroDivisionError: integer division or modulo by zero"


# --- looking for the tests ------------------------------------------------------------------------------

# Looks for the word that stands in the tests, and holds it nowhere itself but backwards.
SEARCH = """
import gc, os, sys
back, found = 'drow-terces', []
def look(text, what):
    if back in text[::-1]: found.append(what)
def look_into(path):
    try:
        with open(path, 'rb') as file: look(file.read(1 << 20).decode('latin-1'), path)
    except OSError: pass
"""
PLACES = {
    "files": "for base in ('{here}', '/tmp', '/proc', '/dev/shm', '/root', '/home', '/var/tmp'):\n"
    "    for folder, _, names in os.walk(base):\n        for name in names: look_into(os.path.join(folder, name))\n",
    "memory": "for o in gc.get_objects(): look(repr(o)[:10000], type(o))\n",
    "frames": "frame = sys._getframe()\nwhile frame := frame.f_back: look(str(frame.f_locals), frame)\n",
    "environment": "found += os.environ.values()\n",
    "descriptors": "for file in range(64):\n    try:\n        os.set_blocking(file, False)\n"
    "        look(os.read(file, 1 << 20).decode('latin-1'), file)\n    except OSError: pass\n    "
    "    try: os.set_blocking(file, True)\n    except OSError: pass\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_the_tests_are_nowhere_to_be_found(place: str, wall: Level, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "secret-word")
    (tmp_path / "tests.py").write_text("secret-word")
    search = SEARCH + PLACES[place].replace("{here}", str(tmp_path))
    verdict = run(
        f"{search}\ndef f(x): return [str(x) for x in found]\n", wall, tests="assert f(1) == [], 'secret-word'"
    )
    assert verdict.clean


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


# --- limits --------------------------------------------------------------------------------------------

ENDLESS = {
    "loop": ("def f(x):\n    while True: pass", "the program used up its 1 s of CPU"),
    "loop on import": ("while True: pass", "the program used up its 1 s of CPU"),
    "that catches everything": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError)"
        ": pass\ndef f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        "the program used up its 1 s of CPU",
    ),
    "output": ("def f(x):\n    while True: print('x' * 1000)", "the program used up its 1 s of CPU"),
    "sleep": ("import time\ndef f(x): time.sleep(10 ** 6)", "the program ran for more than 4 s"),
    "lock": ("import threading\ndef f(x): threading.Event().wait()", "the program ran for more than 4 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["loop", "that catches everything", "output"])
def test_endless_programs_end(kind: str) -> None:
    source, reason = ENDLESS[kind]
    verdict = run(source, host.level_for("best"), QUICK)
    assert (verdict.share, verdict.passed) == (0, 0)
    assert verdict.reason in (reason, ENDLESS["sleep"][1])  # on a loaded machine four seconds may pass first


def test_a_value_that_makes_the_tests_endless_scores_nothing() -> None:
    verdict = check(Job(["def f(x): return 1"], "while f(1): pass\nassert f(1) == 0", "f"), QUICK, "best")
    assert verdict.share == 0
    assert verdict.reason


# --- refusals ------------------------------------------------------------------------------------------


def test_a_machine_without_walls_is_refused_unless_told_otherwise(monkeypatch) -> None:
    bare = host.Found("limits", {"namespaces": "unshare: Operation not permitted", "landlock": "ABI 0"})
    monkeypatch.setattr(host, "_found", [bare])
    with pytest.raises(
        InfrastructureError, match=r"cannot wall off .*unshare: Operation not permitted.*isolation=best"
    ):
        check(Job([GOOD], ASSERTS, "f"), SMALL)
    assert check(Job([GOOD], ASSERTS, "f"), SMALL, "best").clean


def test_a_sandbox_that_cannot_start_makes_no_score(monkeypatch) -> None:
    monkeypatch.setattr(host.sys, "executable", "/no/such/python")
    with pytest.raises(InfrastructureError, match="cannot be started"):
        check(Job([GOOD], ASSERTS, "f"), SMALL, level="limits")
    monkeypatch.setattr(host.sys, "executable", "/bin/false")
    with pytest.raises(InfrastructureError, match="the launcher ended early"):
        check(Job([GOOD], ASSERTS, "f"), SMALL, level="limits")


def test_a_level_that_the_machine_lacks_says_which_call_failed(monkeypatch) -> None:
    """A launcher without the right to make namespaces of any kind: all are made by one call."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); "
    monkeypatch.setattr(host, "_START", limited + host._START.replace("\n", "; "))
    with pytest.raises(InfrastructureError, match="sandbox"):
        check(Job([GOOD], ASSERTS, "f"), SMALL, level="limits")


# --- many at once, and the end of the parent ------------------------------------------------------------


def test_many_threads_at_once() -> None:
    programs = [GOOD, "def f(x): return 2", "import os\nos._exit(0)", "def f(x): return 1 // 0"] * 6
    shares: dict[int, float] = {}

    def one(place: int) -> None:
        shares[place] = check(Job([programs[place]], ASSERTS, "f"), SMALL, "best").share

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [shares[i] for i in range(len(programs))] == [1.0, 0.5, 0.0, 0.0] * 6
    assert not left_over()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_parent_that_is_ended(how: int, wall: Level) -> None:
    script = f"""
from colever.tasks.sandbox.host import *
check(Job(["import time\\ndef f(x): time.sleep(10 ** 6)"], {ASSERTS!r}, "f"), Limits(seconds=200), level={wall!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    family = wait_for(lambda: (c := psutil.Process(parent.pid).children(recursive=True)) and len(c) == 3 and c)
    parent.send_signal(how)
    parent.wait()
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_for(found, seconds: float = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def test_limits_are_what_they_say() -> None:
    source = "import resource\ndef f(name): return resource.getrlimit(getattr(resource, name))[1]"
    tests = ["assert f('RLIMIT_CPU') == 20", "assert f('RLIMIT_CORE') == 0", "assert f('RLIMIT_NOFILE') == 64",
             "assert f('RLIMIT_AS') <= 400 << 20"]  # fmt: skip
    assert check(Job([source], tests, "f"), Limits(20, 256), "best").clean
