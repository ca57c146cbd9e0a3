"""What a check counts, what it refuses, and that nothing is left of it: not of many at once, not of a killed parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from sandbox_parts import ASSERTS, QUICK, SMALL, WALLS, left_over, needs, run

from colever.errors import InfrastructureError, TaskError
from colever.tasks.sandbox import host
from colever.tasks.sandbox.host import Job, Level, Limits, check

GOOD = "def f(x):\n    return x + 1\n"


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


# --- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["def f(x):\n    while True: pass", "def f(x):\n    while True: print('x' * 1000)"])
def test_endless_programs_end(source: str) -> None:
    verdict = run(source, host.level_for("best"), QUICK)
    assert (verdict.share, verdict.passed) == (0, 0)
    # on a loaded machine four seconds may pass before one of CPU
    assert verdict.reason in ("the program used up its 1 s of CPU", "the program ran for more than 4 s")


# --- refusals ------------------------------------------------------------------------------------------


def test_a_machine_without_walls_is_refused_unless_told_otherwise(monkeypatch) -> None:
    bare = host.Found("limits", {"namespaces": "unshare: Operation not permitted", "landlock": "ABI 0"})
    monkeypatch.setattr(host, "_found", [bare])
    with pytest.raises(InfrastructureError, match=r"cannot wall off .*unshare: Oper.*isolation=best"):
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
import signal
from colever.tasks.sandbox.host import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background is started without one
check(Job(["import time\\ndef f(x): time.sleep(10 ** 6)"], {ASSERTS!r}, "f"), Limits(seconds=200), level={wall!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    family = wait_for(lambda: (c := psutil.Process(parent.pid).children(recursive=True)) and len(c) == 3 and c)
    parent.send_signal(how)
    parent.wait(60)
    _, alive = psutil.wait_procs(family, timeout=60)
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
