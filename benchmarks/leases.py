"""What a lease costs: python benchmarks/leases.py postgresql://USER@HOST/NAME (an empty database; PGPASSWORD)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from colever.database import Database
from colever.leases import Leases
from colever.stores import stores_of

TIMES = 200


def timed(what: str, call: Callable[[], object]) -> None:
    """Prints the median and the least of some calls."""
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    print(f"{what:36} median {1000 * median(seconds):5.2f} ms, least {1000 * min(seconds):5.2f}")


def main() -> None:
    os.environ["COLEVER_DATABASE"] = sys.argv[1]
    leases = Leases(Database(stores_of(Path()).database))
    lock, held = leases.lock("writer"), [leases.lock(f"trial-{number}") for number in range(10)]

    def take_and_release() -> None:
        lock.take()
        lock.release()

    timed("take one and give it back", take_and_release)
    for trial in held:
        trial.take()
    timed("renew ten", leases.renew)
    timed("which are held", lambda: leases.held("trial-"))
    held[0].note({f"round {number}": {"rollouts": number} for number in range(100)})
    timed("what another has spent, 100 rounds", lambda: leases.notes("trial-"))


if __name__ == "__main__":
    main()
