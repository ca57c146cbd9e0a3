"""What telling MLflow of a study takes of the sweep's time: a real sweep whose tracker's every call is timed.

    python benchmarks/tracking_cost.py                                  # as `colever sweep arithmetic`, some minutes
    python benchmarks/tracking_cost.py lookup --set weights.updates=8

The sweep, its database and its artifacts are in a temporary folder. Time is counted from the start of the sweep to its
end, reading test included. Last line: JSON with ``logging_share``, and the same of processor time, which depends less
on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from colever import console
from colever.loading import load_config, parse_pairs
from colever.optimizers.sweep import sweep
from colever.studies import open_study
from colever.tracking.mlflow_tracker import MlflowTracker


class Timed:
    """A tracker that passes every call on and keeps how long it took."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self.tracker = tracker
        self.seconds: Counter[str] = Counter()
        self.processor = 0.0  # seconds of it, of the calling thread
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.tracker, name)

        def timed(*values: Any, **named: Any) -> Any:
            started, busy = time.perf_counter(), time.thread_time()
            try:
                return call(*values, **named)
            finally:
                self.processor += time.thread_time() - busy
                self.seconds[name] += time.perf_counter() - started
                self.calls[name] += 1

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default="arithmetic")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    console.silence()
    config = load_config(flags={"task": given.task, "trials": given.trials}, overrides=parse_pairs(given.set, "--set"))
    task, engine = open_study(config)
    with tempfile.TemporaryDirectory() as folder:
        opened = time.perf_counter()
        tracker = Timed(MlflowTracker(Path(folder)))
        opened = time.perf_counter() - opened
        started, busy = time.perf_counter(), time.process_time()
        sweep(config, task, engine, Path(folder), tracker=tracker)
        whole, busy = time.perf_counter() - started, time.process_time() - busy
    spent = sum(tracker.seconds.values())
    for name, seconds in tracker.seconds.most_common():
        calls = tracker.calls[name]
        print(f"{name:18} {calls:3} calls {seconds:7.2f} s, {1000 * seconds / calls:6.0f} ms each")
    print(f"sweep {whole:.1f} s; a new database before it, once for a home folder: {opened:.1f} s")
    figures = {"task": given.task, "trials": given.trials, "seconds": round(whole, 1), "logging": round(spent, 2)}
    shares = {"logging_share": round(spent / whole, 4), "processor_share": round(tracker.processor / busy, 4)}
    print(json.dumps({**shares, **figures}))


if __name__ == "__main__":
    main()
