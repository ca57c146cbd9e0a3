"""How many workers one study bears: what each trial takes of the stores that all share, and who waits first.

Two parts. *Measured*: one real worker runs a study of trials whose pulls take no time, through the real stores (Optuna
and leases in the database, rounds and evaluations in the home folder, MLflow), and every hold of the study's one
writer's lock, every statement and every connection is counted. *Simulated*: so many workers, each with pulls of so many
minutes, queue for that lock with the holds that were measured, which grow with the trials that there are.

    python benchmarks/many_workers.py                                            # sqlite in a home folder
    COLEVER_DATABASE=postgresql://me@host/db python benchmarks/many_workers.py   # as in docs/cluster.md
    python benchmarks/many_workers.py --trials 400 --workers 1,100,1000 --minutes 5,30

The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import statistics
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from dspy import lm15
from sqlalchemy import Engine, event

from colever import console
from colever.config import Settings, SweepConfig
from colever.locks import locks_of
from colever.optimizers.lever import Pull
from colever.optimizers.sweep import sweep
from colever.optimizers.workers import Workers
from colever.stores import stores_of
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.types import Candidate, Cost, PredictorPrompt, Weights, digest_of

ROUNDS = 2  # of every trial here
PLACES = ("claim", "start", *["round"] * ROUNDS, "end")  # the holds of a trial, in order
TRIALS_OF_EACH = 3  # that a simulated worker runs


# --- what is measured ----------------------------------------------------------------------------


class Constant:
    """An engine that always says the same, at once."""

    name, digest = "constant", "constant"
    meter = Cost()

    def __deepcopy__(self, memo: dict[int, Any]) -> Constant:
        return self

    def load(self, weights: Weights) -> None:
        """Every version says the same."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        message = lm15.Message.assistant([lm15.TextPart("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")])
        usage = lm15.Usage(input_tokens=10, output_tokens=2, total_tokens=12)
        return lm15.Response(id="c", model="c", message=message, finish_reason="stop", usage=usage)


@dataclass(frozen=True)
class Instant:
    """A lever whose pull takes no time: other words, or other weights, for every setting."""

    name: Any
    settings: Settings

    def planned(self, candidate: Candidate, task: Task) -> int:
        return 0

    def improve(
        self, candidate: Candidate, task: Task, engine: Any, budget: Any, seed: int, workdir: Path, progress: Any
    ) -> Pull:
        made = digest_of([self.settings.model_dump(mode="json"), seed, candidate.digest])
        if self.name == "prompt":
            return Pull(Candidate({"answer": PredictorPrompt(f"Answer ({made}).")}, candidate.weights))
        folder = workdir / "weights"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(made)
        return Pull(Candidate(candidate.prompts, Weights("full", str(folder), made)))


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict(dspy.Signature("question -> answer", "Answer."))

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)


def _task() -> Task:
    rows = [dspy.Example(question=f"{i}?", answer="yes").with_inputs("question") for i in range(3)]
    right = Criterion("right", lambda example, prediction, steps: prediction.answer == example.answer)
    return Task("stores", Program, rows[:1], rows[1:2], rows[2:], Rubric([right]))


@dataclass
class Counted:
    """Holds of the writer's lock in order: by which function of the sweep, and for how many seconds."""

    holds: list[tuple[str, float]] = field(default_factory=list)
    statements: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def counting(self) -> Iterator[None]:
        writing, depth = Workers.writing, threading.local()

        def timed(workers: Workers) -> Any:
            names = (f.name for f in reversed(traceback.extract_stack()) if f.filename.endswith("sweep.py"))
            return self._timed(writing(workers), depth, next((n for n in names if n != "_telling"), ""))

        def told(connection: Any, *_: Any) -> None:
            self.statements[connection.engine.dialect.name] += 1

        Workers.writing = timed  # type: ignore[method-assign, assignment]
        event.listen(Engine, "before_cursor_execute", told)
        try:
            yield
        finally:
            Workers.writing = writing  # type: ignore[method-assign]
            event.remove(Engine, "before_cursor_execute", told)

    @contextmanager
    def _timed(self, lock: Any, depth: threading.local, who: str) -> Iterator[None]:
        depth.now = getattr(depth, "now", 0) + 1
        started = time.perf_counter()
        try:
            with lock:
                yield
        finally:
            depth.now -= 1
            if depth.now == 0:  # taking and giving it back are part of what the next one waits for
                self.holds.append((who, time.perf_counter() - started))

    def table(self) -> np.ndarray:
        """(trials, places) seconds; of trials with all their rounds."""
        found: list[list[float]] = []
        for who, seconds in self.holds:
            if who == "run_trials":
                found.append([seconds, 0.0, 0.0, 0.0])
            elif found and who in ("_run_trial", "on_round"):
                row = found[-1]
                row[2 if who == "on_round" else 3 if row[2] else 1] += seconds
        return np.array([[c, s, *[r / ROUNDS] * ROUNDS, e] for c, s, r, e in found if e])


def _measured(trials: int, home: Path) -> tuple[np.ndarray, Counted]:
    """(trials, places) seconds of each trial's holds, and all that was counted."""
    config = SweepConfig(
        task="stores", model="constant", study=f"many-{os.getpid()}-{int(time.time())}", trials=trials,
        schedules=("p,w", "w,p"), max_rounds=ROUNDS, sampler="random", sample_rollouts=1, elsewhere=(),
        search={"weights.learning_rate": (1e-5, 1e-3)},
    )  # fmt: skip
    counted = Counted()
    with counted.counting():
        sweep(
            config, _task(), Constant(), home, tracker=MlflowTracker(home),  # type: ignore[arg-type]
            levers=lambda p, w: {"prompt": Instant("prompt", p), "weights": Instant("weights", w)},  # type: ignore[dict-item]
            progress=None,
        )  # fmt: skip
    return counted.table(), counted


# --- what is simulated ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """A simulated run: the shares of the workers' time in which they waited, and of all time that the lock was held."""

    workers: int
    minutes: float
    waiting: float
    held: float


def simulate(line: np.ndarray, workers: int, minutes: float, seed: int = 0) -> Load:
    """``line`` (2, places): seconds of each hold with no trial ended yet, and what every ended trial adds.

    A worker claims and starts a trial, pulls for 0.5 to 1.5 times ``minutes`` a round, and books each round and the
    trial's end; whoever asks first gets the lock first. All begin within the time of one pull.
    """
    rng = random.Random(seed)
    pull = 60 * minutes
    queue = [(rng.uniform(0, pull), worker, 0, 0) for worker in range(workers)]  # when, who, place, trials done
    heapq.heapify(queue)
    free_at = waited = held = worked = end = 0.0
    ended = 0
    while queue:
        now, worker, place, done = heapq.heappop(queue)
        start = max(now, free_at)
        hold = float(line[0, place] + line[1, place] * ended)
        waited, held, free_at = waited + start - now, held + hold, start + hold
        end, next_at = max(end, free_at), free_at
        place += 1
        if place in range(2, 2 + ROUNDS):  # after the start, and after all but the last round: a pull
            took = pull * rng.uniform(0.5, 1.5)
            worked, next_at = worked + took, next_at + took
        if place == len(PLACES):
            ended, place, done = ended + 1, 0, done + 1
        if done < TRIALS_OF_EACH:
            heapq.heappush(queue, (next_at, worker, place, done))
    return Load(workers, minutes, waited / (waited + worked + held), held / end)


def main() -> None:
    options = _options()
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        database = stores_of(home).database
        table, counted = _measured(options.trials, home)
        connections = _connections(home) if database else None
    line = _fitted(table)
    _print_measured(table, line, counted, options.trials)
    print(f"\n{'workers':>8}{'minutes a pull':>16}{'trials':>8}{'lock held':>11}{'workers wait':>14}")
    loads = [simulate(line, w, m) for w in options.workers for m in options.minutes]
    for load in loads:
        trials = load.workers * TRIALS_OF_EACH
        print(f"{load.workers:>8,}{load.minutes:>16g}{trials:>8,}{load.held:>11.1%}{load.waiting:>14.1%}")
    most, limit = connections or (0, 0)
    if connections:
        room = f"{limit // most} workers without a pooler"
        print(f"\nconnections of a worker: {most}; the server's limit: {limit}, so {room}")
    print(json.dumps({
        "database": "postgresql" if database else "sqlite",
        "hold_seconds_of_a_trial": round(float(line[0].sum()), 4),
        "more_for_every_ended_trial": float(f"{line[1].sum():.3g}"),
        "statements_of_a_trial": round(counted.statements.total() / options.trials, 1),
        "connections_of_a_worker": most or None,
        "waiting": {f"{load.workers} x {load.minutes:g} min": round(load.waiting, 4) for load in loads},
    }))  # fmt: skip


def _options() -> argparse.Namespace:
    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="that are measured, at least 20 (default 200)")
    parser.add_argument("--workers", type=numbers, default=[1, 10, 100, 1000], help="simulated: 1,10,100,1000")
    parser.add_argument("--minutes", type=numbers, default=[1, 5, 30], help="of a pull (default 1,5,30)")
    options = parser.parse_args()
    if options.trials < 20 or min(*options.workers, *options.minutes) <= 0:
        parser.error("accepted: --trials from 20; --workers and --minutes above 0, by commas")
    options.workers = [int(w) for w in options.workers]
    return options


def _fitted(table: np.ndarray) -> np.ndarray:
    """(2, places): a line through each place's holds over the trials ended, neither part below 0."""
    ended = np.arange(len(table))
    slope, start = np.polyfit(ended, table, 1)
    return np.maximum(np.stack([start, slope]), 0)


def _connections(home: Path) -> tuple[int, int]:
    """How many this process has now, and how many the server allows."""
    from sqlalchemy import text

    locks: Any = locks_of(home)
    with locks.database.engine.connect() as connection:
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'colever'"
        return int(connection.execute(text(mine)).scalar()), int(
            connection.execute(text("SHOW max_connections")).scalar()
        )


def _print_measured(table: np.ndarray, line: np.ndarray, counted: Counted, trials: int) -> None:
    print(f"{trials} trials of {ROUNDS} rounds each, one worker; milliseconds that the writer's lock is held:")
    tenth = max(1, len(table) // 10)
    print(f"{'':10}{'first tenth':>12}{'last tenth':>12}{'per 1000 ended trials':>24}")
    for place, name in enumerate(PLACES):
        first, last = (1000 * statistics.median(part[:, place]) for part in (table[:tenth], table[-tenth:]))
        print(f"{name:10}{first:>12.1f}{last:>12.1f}{1e6 * line[1, place]:>24.1f}")
    told = ", ".join(f"{count / trials:.0f} {name}" for name, count in counted.statements.items())
    print(f"statements of a trial: {told}")


if __name__ == "__main__":
    main()
