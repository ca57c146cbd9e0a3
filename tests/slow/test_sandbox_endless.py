"""Programs that never come to an end, at every level of the sandbox."""

from __future__ import annotations

import pytest
from sandbox_parts import QUICK, needs, run

from colever.tasks.sandbox import host
from colever.tasks.sandbox.host import Job, Level, check

pytestmark = pytest.mark.slow
CPU, TIME = "the program used up its 1 s of CPU", "the program ran for more than 4 s"
STUBBORN = """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
"""
ENDLESS = {
    "loop": ("def f(x):\n    while True: pass", {CPU, TIME}),  # on a loaded machine time may run out first
    "loop on import": ("while True: pass", {CPU, TIME}),
    "loop that catches everything": (STUBBORN, {CPU, TIME}),
    "output": ("def f(x):\n    while True: print('x' * 1000)", {CPU, TIME}),
    "sleep": ("import time\ndef f(x): time.sleep(10 ** 6)", {TIME}),
    "lock": ("import threading\ndef f(x): threading.Event().wait()", {TIME}),
    "no answer": (
        "import sys\nwire = next(m for n, m in sys.modules.items() if n.endswith('wire'))\n"
        "wire.send = lambda *a, **k: None\ndef f(x): return 2",
        {TIME},
    ),
    "threads": (
        "import threading\ndef loop():\n    while True: pass\ndef f(x):\n"
        "    for _ in range(3): threading.Thread(target=loop).start()\n    loop()",
        {CPU, TIME},
    ),
}


@pytest.fixture(params=host.LEVELS)
def level(request) -> Level:
    return needs(request.param)


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_programs_end(kind: str, level: Level) -> None:
    source, reasons = ENDLESS[kind]
    verdict = run(source, level, QUICK)
    assert (verdict.share, verdict.passed) == (0, 0)
    assert verdict.reason in reasons


def test_a_value_that_makes_the_tests_endless_scores_nothing(level: Level) -> None:
    job = Job(["def f(x): return 1"], "while f(1): pass\nassert f(1) == 0", "f")
    verdict = check(job, QUICK, level=level)
    assert verdict.share == 0
    assert verdict.reason
