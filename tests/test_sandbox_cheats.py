"""Programs that cheat or look for their tests: each is a failure, finds nothing, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox_parts import QUICK, SMALL, WALLS, needs, run

from colever.tasks.sandbox import host
from colever.tasks.sandbox.host import Job, Level, check


@pytest.fixture(params=WALLS)
def wall(request) -> Level:
    return needs(request.param)


# --- cheating ------------------------------------------------------------------------------------------

CHEATS = {
    "sys.exit(0) on import": "import sys\nsys.exit(0)",
    "sys.exit(0) in a call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit(0) on import": "import os\nos._exit(0)",
    "os._exit(0) in a call": "import os\ndef f(x): os._exit(0)",
    "exit through atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return None",
    "equal to everything": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "equal int": "class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(9)",
    "equal text": "class E(str):\n    def __eq__(self, o): return True\ndef f(x): return E()",
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
    verdict = run(CHEATS[name], host.level_for("best"), QUICK if name == "deep recursion" else SMALL)
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
    "        look(os.read(file, 1 << 20).decode('latin-1'), file)\n    except OSError: pass\n"
    "    try: os.set_blocking(file, True)\n    except OSError: pass\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_the_tests_are_nowhere_to_be_found(place: str, wall: Level, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "secret-word")
    (tmp_path / "tests.py").write_text("secret-word")
    search = SEARCH + PLACES[place].replace("{here}", str(tmp_path))
    source = f"{search}\ndef f(x): return [str(x) for x in found]\n"
    assert run(source, wall, tests="assert f(1) == [], 'secret-word'") == host.Verdict(1, 1, True)
