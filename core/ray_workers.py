"""A study's workers as tasks of a Ray cluster, for machines that differ: ``colever sweep TASK --workers 8 --on ray``.

Ray places each where the CPUs and GPUs that it needs are free, and starts it again elsewhere when its process or node
is gone; what it did is then taken up as any killed worker's is. Each task is the worker that ``colever worker`` runs:
Optuna has the trials, Ray knows of none. Ray is imported here alone; who shares a study without it needs it nowhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from colever import __version__, console
from colever.errors import ColeverError, InfrastructureError, LeverError, StoreError, UsageError
from colever.process import machine
from colever.stores import VARIABLES, Stores, stores_of

if TYPE_CHECKING:
    from colever.config import SweepConfig
    from colever.reported import StudyReport

RETRIES = 16  # times that Ray starts a worker again whose process or node died
STORE = 80 * 2**20  # bytes of Ray's own object store on this machine: its least; nothing of ours is in it
GRACE = 60.0  # seconds that workers have to end after they were asked to
ACCEPTED = "accepted: ray (RAY_ADDRESS, or a cluster on this machine), or ray://HOST:10001"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayWorkers:
    """So many workers, and where: "" is RAY_ADDRESS, else this machine's cluster, which is started if there is none."""

    count: int
    address: str = ""
    needs: Mapping[str, float] = field(default_factory=dict)  # cpus, gpus, or resources of the cluster's own

    @classmethod
    def of(cls, on: str, count: int, needs: Mapping[str, Any]) -> RayWorkers:
        """From the flags. Raises UsageError for what is none."""
        if on != "ray" and not (on.startswith("ray://") and len(on) > len("ray://")):
            raise UsageError(f"--on {on!r}: {ACCEPTED}")
        for name, amount in needs.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise UsageError(f"--needs {name}={amount}: accepted: a number, such as gpus=1, cpus=4")
        return cls(count, "" if on == "ray" else on, {name: float(amount) for name, amount in needs.items()})


def placed(count: int, on: str | None, needs: Sequence[str] | None) -> int | RayWorkers:
    """``--workers``, ``--on`` and ``--needs`` together. Raises UsageError."""
    from colever.loading import parse_pairs

    if on is None and needs:
        raise UsageError("--needs is of workers on a Ray cluster; accepted with --on ray")
    return count if on is None else RayWorkers.of(on, count, parse_pairs(needs or (), "--needs"))


@dataclass(frozen=True)
class Job:
    """What a worker is told. It goes to other machines, so no credentials are in it."""

    config: Mapping[str, Any]
    home: str
    stores: Stores
    folder: str  # in which the command was given: paths in the configuration are of it
    machine: str
    token: str  # a file in the home folder, which a worker sees if it sees that folder
    version: str = __version__


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: the study's failed trials, or the error that ended it."""

    failures: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""


def run_on_ray(config: SweepConfig, home: Path, workers: RayWorkers) -> StudyReport:
    """Run or continue the study with these workers; its report, read from what they have stored.

    Raises what ended the workers where none of them came to the study's end.
    """
    from colever.optimizers.attribution import report_of
    from colever.optimizers.study import find_study

    with _connected(workers.address) as ray, _token(home) as token:
        needs = _needed(config, workers.needs, ray)
        job = Job(config.model_dump(mode="json"), str(home), stores_of(home), os.getcwd(), machine(), token)
        work = ray.remote(max_calls=1, max_retries=RETRIES, **_options(needs))(_work)
        console.say(f"{workers.count} workers on Ray, each with {console.pairs(needs)}")
        ended = _ended(ray, [work.remote(job) for _ in range(workers.count)])
    for place, outcome in enumerate(ended, 1):
        if outcome.error:
            logger.warning("worker %d failed: %s", place, outcome.error)
    whole = [outcome for outcome in ended if not outcome.error]
    if not whole:
        kinds = {kind.__name__: kind for kind in (UsageError, StoreError, LeverError)}
        raise kinds.get(ended[0].kind, InfrastructureError)(ended[0].error)
    return replace(report_of(find_study(home, config.study_name)), failures=whole[-1].failures)


def _work(job: Job) -> Outcome:
    """One worker, in a process of Ray's on any machine."""
    from colever.config import SweepConfig
    from colever.studies import run_study

    console.silence()
    try:
        _shared_with(job)
        stores_of(Path(job.home))  # a password in the node's own addresses is put where the clients look for it
        os.environ.update({VARIABLES[name]: url for name, url in asdict(job.stores).items() if url})
        if os.path.isdir(job.folder):
            os.chdir(job.folder)
        return Outcome(tuple(run_study(SweepConfig(**job.config), Path(job.home)).failures))
    except ColeverError as error:
        return Outcome(error=str(error), kind=type(error).__name__)
    except typer.Exit:  # it was told to end, and has said so
        return Outcome(error="ended", kind="InfrastructureError")


def _shared_with(job: Job) -> None:
    """Raises UsageError where this machine cannot share the study with the others."""
    if job.version != __version__:
        raise UsageError(f"a node of the Ray cluster has Colever {__version__}; accepted: {job.version}, as here")
    if job.machine == machine():
        return
    if not job.stores.database:
        raise UsageError("workers on several machines share their trials by a database: give one with --database")
    if not job.stores.objects and not Path(job.home, job.token).exists():
        raise UsageError(
            f"a node of the Ray cluster does not see --home {job.home}; accepted: a folder that all nodes see under "
            "this path, or --objects"
        )


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, on the cluster of that address."""
    from colever.studies import ended_by_sigterm

    ray, quiet = _ray(), {"logging_level": logging.ERROR}
    named = address or os.environ.get("RAY_ADDRESS", "")
    try:
        _knock(named)
        ray.init(address or "auto", **quiet)
    except ConnectionError as error:
        if named:
            raise InfrastructureError(f"--on ray: there is no Ray cluster at {named}") from error
        ray.init("local", include_dashboard=False, object_store_memory=STORE, **quiet)
    try:
        with ended_by_sigterm():  # once more: Ray has put its own handler in the place of ours
            yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises ConnectionError where nobody answers at HOST:PORT: Ray itself would try for minutes."""
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if sign and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--on ray: Ray is not installed; accepted: pip install 'colever[ray]'") from error
    return ray


@contextlib.contextmanager
def _token(home: Path) -> Iterator[str]:
    file = home / f".{uuid.uuid4().hex}.seen"
    file.touch()
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def _needed(config: SweepConfig, given: Mapping[str, float], ray: Any) -> dict[str, float]:
    """What a worker takes: a CPU, and a GPU unless its model is for the CPU. Says so where no node has that now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device = config.engine.device
    on_cpu = device == "cpu" or config.model == "seed" or not config.trainable
    some = device.startswith("cuda") or any(node.get("GPU") for node in nodes)
    needs = {"cpus": 1.0, "gpus": 0.0 if on_cpu or not some else 1.0, **given}
    if not any(all(node.get(_named(name), 0) >= amount for name, amount in needs.items()) for node in nodes):
        console.say(f"no node of the Ray cluster has {console.pairs(needs)} now: the workers wait for one")
    return needs


def _options(needs: Mapping[str, float]) -> dict[str, Any]:
    own = {name: amount for name, amount in needs.items() if name not in ("cpus", "gpus")}
    return {"num_cpus": needs["cpus"], "num_gpus": needs["gpus"], "resources": own}


def _named(need: str) -> str:
    return {"cpus": "CPU", "gpus": "GPU"}.get(need, need)


def _ended(ray: Any, tasks: Sequence[Any]) -> list[Outcome]:
    """How each ended. Ctrl-C is passed on to all of them."""
    try:
        return [_outcome(ray, task) for task in tasks]
    except KeyboardInterrupt:
        for task in tasks:
            ray.cancel(task)
        ray.wait(list(tasks), num_returns=len(tasks), timeout=GRACE)
        raise


def _outcome(ray: Any, task: Any) -> Outcome:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:  # its node and all that came after it, or an error that is none of ours
        return Outcome(error=str(error).strip().splitlines()[-1], kind="InfrastructureError")
