"""What one sandboxed check costs: a trivial program with two tests, at each level that this machine has.

python benchmarks/sandbox.py [CHECKS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from colever.errors import InfrastructureError
from colever.tasks.sandbox.host import LEVELS, Job, Level, check

JOB = Job(["def f(x):\n    return x + 1\n"], ["assert f(1) == 2", "assert f(2) == 3"], "f")


def timed(level: Level, checks: int) -> list[float]:
    times = []
    for _ in range(checks):
        started = time.perf_counter()
        check(JOB, level=level)
        times.append(1000 * (time.perf_counter() - started))
    return times


def start(checks: int) -> list[float]:
    """The floor: Python alone, without its site packages."""
    times = []
    for _ in range(checks):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        times.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    checks = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    print(f"{'python -c pass':16} median {statistics.median(start(checks)):5.0f} ms")
    for level in LEVELS:
        try:
            times = timed(level, checks)
        except InfrastructureError as error:
            print(f"{level:16} {error}")
            continue
        print(
            f"{level:16} median {statistics.median(times):5.0f} ms, of {checks}: {min(times):.0f} to {max(times):.0f}"
        )


if __name__ == "__main__":
    main()
