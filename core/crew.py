"""The processes that train each pull of the weight lever together with the command's own (``training.processes``).

They are started before the first pull, wait between pulls, and end with the command. Each has its own engine, on a GPU
of its own where there are GPUs, and its share of the cores; they talk through 127.0.0.1, and write what they have to
say to files in the study's folder. One that ends in a pull ends that pull, and the others with it; the next pull starts
them anew. How a pull is shared out is none of this file's business (``optimizers/processes``).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.errors import ColeverError, LeverError, UsageError
from colever.worker import detach, threads_shared

if TYPE_CHECKING:
    from colever.config import Settings, SweepConfig, WeightSettings
    from colever.optimizers.budget import Budget
    from colever.optimizers.lever import Lever, Progress, Pull
    from colever.types import Candidate, LeverName

READY, DONE = "ready", "done"  # what a process says that has nothing to complain of
LAST_WORDS = 10.0  # seconds that a process has to say why it ends
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Order:
    """One pull, as the other processes need it told."""

    candidate: Candidate
    settings: Any  # WeightSettings
    seed: int
    workdir: Path


@dataclass(frozen=True)
class _Member:
    """One further process, and the pipe to it."""

    rank: int
    process: BaseProcess
    pipe: Connection
    log: Path

    def says(self) -> str:
        """Its next word; raises LeverError where it has ended, or says what went wrong."""
        wait([self.pipe, self.process.sentinel])
        said = self.last_words()
        if said in (READY, DONE):
            return said
        raise LeverError(self.complaint(said))

    def last_words(self) -> str:
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                return str(self.pipe.recv())
        return ""

    def complaint(self, said: str) -> str:
        """What is told of it: what it said, or how it ended."""
        if not said:
            self.process.join(LAST_WORDS)
            said = f"ended (exit code {self.process.exitcode})"
        return f"process {self.rank}, which trains along: {said}; its output: {self.log}"


class Crew:
    """This process and those that train along; none of these is there until a pull needs them."""

    def __init__(self, config: SweepConfig, home: Path, task_digest: str) -> None:
        self.config, self.home, self.digest = config, home, task_digest
        self.size = config.training.processes
        self._members: list[_Member] = []
        self._fallen: list[_Member] = []  # who ended in a pull, before the others were ended for it

    def lever(self, settings: WeightSettings) -> Lever:
        """The weight lever, pulled by all."""
        from colever.optimizers.weight_lever import WeightLever

        lever: Lever = WeightLever(settings, self.config.training.sharding)
        return lever if self.size == 1 else CrewLever(lever, self)

    @contextmanager
    def at_work(self, order: Order) -> Iterator[None]:
        """The others do ``order`` while the block does; whatever ends the block early ends them.

        Raises LeverError where one of them ended.
        """
        try:
            if not self._members:
                self._muster()
            for member in self._members:
                member.pipe.send(order)
            with self._watched():
                yield
            for member in self._members:
                member.says()
        except BaseException as error:  # an interrupt too: nobody is left waiting for this process
            lost = "" if isinstance(error, ColeverError) or not isinstance(error, Exception) else self._lost()
            self.dismiss()
            if lost:
                raise LeverError(lost) from error
            raise

    def dismiss(self) -> None:
        """End the others at once: whatever they were doing, this process keeps what there is to keep."""
        import torch.distributed as dist

        members, self._members, self._fallen = self._members, [], []
        for member in members:
            member.process.kill()
        for member in members:
            member.process.join()
            member.pipe.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _muster(self) -> None:
        """Start the others and wait until they are there."""
        import torch.distributed as dist

        from colever.optimizers.processes import LONGEST, backend

        device = _device(self.config)
        store = dist.TCPStore(HOST, 0, self.size, is_master=True, wait_for_workers=False)
        for rank in range(1, self.size):
            self._members.append(self._start(rank, store.port))
        for member in self._members:
            member.says()
        dist.init_process_group(backend(device), store=store, rank=0, world_size=self.size, timeout=LONGEST)

    def _start(self, rank: int, port: int) -> _Member:
        log = (self.home / "studies" / self.config.study_name / f"process-{rank}.log").resolve()
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        where = (self.config, self.home.resolve(), self.digest, rank, port, theirs, log)
        process = context.Process(target=run_member, args=where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process.start()
        theirs.close()
        return _Member(rank, process, ours, log)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While the block runs: where one of several ends, end the others, so that this process hears of it."""
        stop, stopped = multiprocessing.Pipe()

        def watch() -> None:
            ready = wait([stopped, *(m.process.sentinel for m in self._members)])
            if stopped not in ready:
                self._fallen = [m for m in self._members if m.process.sentinel in ready]
                for member in self._members:
                    member.process.kill()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.send(None)
            thread.join()

    def _lost(self) -> str:
        """What is said of the first process that ended; empty where all are there."""
        wait([x for m in self._members for x in (m.pipe, m.process.sentinel)], LAST_WORDS)
        for member in self._fallen or self._members:
            said = member.last_words()
            if said or not member.process.is_alive():
                return member.complaint(said)
        return ""


class CrewLever:
    """A weight lever whose pulls are done by all of a crew."""

    name: LeverName = "weights"

    def __init__(self, lever: Lever, crew: Crew) -> None:
        self.lever, self.crew = lever, crew

    @property
    def settings(self) -> Settings:
        return self.lever.settings

    def planned(self, candidate: Candidate, task: Any) -> int:
        return self.lever.planned(candidate, task)

    def improve(
        self,
        candidate: Candidate,
        task: Any,
        engine: Any,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress,
    ) -> Pull:
        with self.crew.at_work(Order(candidate, self.settings, seed, workdir.resolve())):
            return self.lever.improve(candidate, task, engine, budget, seed, workdir, progress)


@contextmanager
def crew_of(config: SweepConfig, home: Path, task_digest: str) -> Iterator[Crew]:
    """The processes that train together while the block runs."""
    crew = Crew(config, home, task_digest)
    if crew.size == 1:
        yield crew
        return
    with threads_shared(crew.size):
        try:
            yield crew
        finally:
            crew.dismiss()


def run_member(config: SweepConfig, home: Path, digest: str, rank: int, port: int, pipe: Connection, log: Path) -> None:
    """One further process: waits for orders and does them; says why where it cannot, and ends."""
    detach(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for word in _at_orders(config, home, digest, rank, port, pipe):
            pipe.send(word)
    except Exception as error:  # the boundary to the command's process, which is told
        traceback.print_exc()
        pipe.send(str(error) if isinstance(error, ColeverError) else f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def _at_orders(config: SweepConfig, home: Path, digest: str, rank: int, port: int, pipe: Connection) -> Iterator[str]:
    """A word when this process is ready, and one after each pull."""
    import torch
    import torch.distributed as dist

    from colever.engines.bench import ANSWERS, seated
    from colever.optimizers.budget import Budget
    from colever.optimizers.lever import NullProgress
    from colever.optimizers.processes import LONGEST, backend
    from colever.optimizers.weight_lever import WeightLever
    from colever.studies import open_study
    from colever.tasks.judges import open_judges

    device = _device(config)
    if device != "cpu":
        torch.cuda.set_device(rank)
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"device": f"cuda:{rank}"})})
    task, engine = open_study(config, home)
    if task.digest() != digest:
        raise UsageError("the task has changed since the command was started")
    yield READY
    size = config.training.processes
    store = dist.TCPStore(HOST, port, size, is_master=False)
    dist.init_process_group(backend(device), store=store, rank=rank, world_size=size, timeout=LONGEST)
    with seated(config.judge, home / ANSWERS) as bench:
        open_judges(task, bench)
        while True:
            order: Order = pipe.recv()
            lever = WeightLever(order.settings, config.training.sharding)
            lever.improve(order.candidate, task, engine, Budget(), order.seed, order.workdir, NullProgress())
            yield DONE


def _end_with_parent() -> None:
    """At once: what this process has is also with the one that is gone, or lost."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _device(config: SweepConfig) -> str:
    """Of the processes' engines. Raises UsageError where there are too few of them."""
    import torch

    there, wanted = torch.cuda.device_count(), config.training.processes
    if config.engine.device == "cpu" or there == 0:
        return "cpu"
    if wanted > there:
        raise UsageError(f"training.processes={wanted}: there are {there} GPUs; accepted: 1 to {there}")
    return "cuda"


def refuse(config: SweepConfig, workers: int) -> None:
    """Raises UsageError where others start processes too: a launcher, or several workers for the same cores or GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "this command was started by a launcher (WORLD_SIZE is above 1), and starts its processes itself; accepted "
            "without one: --processes 2"
        )
    if workers > 1 and config.training.processes > 1:
        raise UsageError(
            f"--workers {workers} with training.processes={config.training.processes}: accepted: one of them above 1"
        )
