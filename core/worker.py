"""Further processes on a study, which ``--workers`` starts beside the command's own; they end when it ends.

Each has its own engine and its share of the cores, and writes what it has to say to a file in the study's folder.
How several processes share a study out is none of this file's business (``optimizers/workers``).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colever.config import SweepConfig

GRACE = 60  # seconds that a worker has to end after it was asked to
THREADS = "OMP_NUM_THREADS"
logger = logging.getLogger(__name__)


@contextmanager
def further_workers(config: SweepConfig, home: Path, count: int) -> Iterator[None]:
    """``count`` further workers on the study while the block runs; what the block does is a worker of its own.

    Cores are shared out evenly unless OMP_NUM_THREADS says how many each worker takes. A worker that fails leaves its
    trial to the others, and a warning names the file that says why.
    """
    if not count:
        yield
        return
    with threads_shared(count + 1):
        workers = [_start(config, home, place) for place in range(2, count + 2)]
        try:
            yield
        except BaseException:  # an interrupt too: the further processes are told to end, then it goes on up
            _end(workers, signal.SIGINT)
            raise
        _end(workers)
    for place, worker in enumerate(workers, 2):
        if worker.exitcode:
            logger.warning("worker %d failed: see %s", place, _log(config, home, place))


def run_worker(config: SweepConfig, home: Path, log: Path) -> None:
    """One worker, as a process of its own: ends at once, as after Ctrl-C, when the process that started it is gone."""
    detach(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from colever import console
    from colever.optimizers.sweep import sweep
    from colever.studies import open_study
    from colever.tracking.mlflow_tracker import MlflowTracker

    console.silence()
    try:
        task, engine = open_study(config, home)
        with closing(engine), console.progress() as drawn:
            sweep(config, task, engine, home, tracker=MlflowTracker(home), progress=drawn)
    except KeyboardInterrupt:
        console.say("interrupted")


def detach(log: Path) -> None:
    """In a process that was started: Ctrl-C reaches the starting one alone, which passes it on; its output is kept."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


@contextmanager
def threads_shared(workers: int) -> Iterator[None]:
    """Each worker's share of the cores, this process included, if the user has not said otherwise."""
    if THREADS in os.environ:
        yield
        return
    import torch

    before, share = torch.get_num_threads(), max(1, len(os.sched_getaffinity(0)) // workers)
    os.environ[THREADS] = str(share)  # for the processes that are started now
    torch.set_num_threads(share)
    try:
        yield
    finally:
        del os.environ[THREADS]
        torch.set_num_threads(before)


def _start(config: SweepConfig, home: Path, place: int) -> BaseProcess:
    log = _log(config, home, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    worker = multiprocessing.get_context("spawn").Process(target=run_worker, args=(config, home.resolve(), log))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worker.start()
    return worker


def _end(workers: list[BaseProcess], how: signal.Signals | None = None) -> None:
    """Wait for them; where ``how`` is given, tell them to stop first."""
    for worker in workers:
        if how is not None and worker.pid is not None and worker.is_alive():
            os.kill(worker.pid, how)
    for worker in workers:
        worker.join(GRACE)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def _log(config: SweepConfig, home: Path, place: int) -> Path:
    return home / "studies" / config.study_name / f"worker-{place}.log"
