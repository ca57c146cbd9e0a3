"""Workers that share a PostgreSQL and an MLflow server: the table of one alone, whatever is killed meanwhile."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer, mlflow_server
from postgres import PASSWORD, Postgres, postgres
from test_kill import finish, start, timeless
from test_workers_kill import arms_of, end, started_rounds

pytestmark = pytest.mark.slow
STUDY = "toy-toy-s0"
LASTS = 20.0  # seconds of a lease here


class Cluster:
    """A server of each kind, and a home folder that all processes see."""

    def __init__(self, database: Postgres, mlflow: MlflowServer, url: str, home: Path) -> None:
        self.database, self.mlflow, self.url, self.home = database, mlflow, url, home
        self.started: list[subprocess.Popen[str]] = []

    def start(self, pause: float = 0.2) -> subprocess.Popen[str]:
        """A worker on the toy study; ended with the test, whatever becomes of it."""
        self.started.append(start(self.home, pause))
        return self.started[-1]

    def leases(self) -> dict[str, str]:
        """Name -> owner of those that have not expired."""
        import psycopg

        with psycopg.connect(self.url, password=PASSWORD) as connection:
            clock = "extract(epoch from clock_timestamp())"
            return dict(connection.execute(f"SELECT name, owner FROM colever_leases WHERE expires >= {clock}"))

    def runs(self) -> list[Any]:
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.mlflow.url)
        experiments = [e.experiment_id for e in client.search_experiments()]
        return list(client.search_runs(experiments, max_results=1000))

    def assert_runs_are_whole(self, trials: int = 6) -> None:
        """One study, its trials, each round once, nothing left running."""
        runs = self.runs()
        kinds = [r.data.tags.get("kind") for r in runs]
        assert (kinds.count("study"), kinds.count("base")) == (1, 1)
        numbers = [r.data.tags["trial"] for r in runs if r.data.tags["kind"] == "trial"]
        assert sorted(numbers, key=int) == [str(i) for i in range(trials)]
        rounds = [(r.data.tags["trial"], r.data.tags["round"]) for r in runs if r.data.tags["kind"] == "round"]
        assert len(rounds) == len(set(rounds))
        assert {r.info.status for r in runs} == {"FINISHED"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, MlflowServer]]:
    with postgres() as database, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        with mlflow_server(database.make("mlflow"), tmp_path_factory.mktemp("mlflow")) as mlflow:
            yield database, mlflow


@pytest.fixture
def cluster(
    servers: tuple[Postgres, MlflowServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """With an empty database, and no runs of an earlier test."""
    import mlflow

    name = f"colever{time.time_ns()}"
    made = Cluster(*servers, servers[0].make(name), tmp_path / "shared")
    client = mlflow.MlflowClient(tracking_uri=servers[1].url)
    for run in made.runs():
        client.delete_run(run.info.run_id)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("COLEVER_DATABASE", made.url)
    monkeypatch.setenv("COLEVER_MLFLOW", servers[1].url)
    monkeypatch.setenv("COLEVER_LEASE_SECONDS", str(LASTS))
    yield made
    for process in made.started:
        if process.poll() is None:
            end(process)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One worker on one machine, with no server: its home and its report."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("COLEVER_DATABASE", "COLEVER_MLFLOW"):
            patch.delenv(variable, raising=False)
        home = tmp_path_factory.mktemp("alone")
        return home, finish(start(home))


def until(seen: Callable[[], bool], *processes: subprocess.Popen[str], most: float = 400) -> None:
    """Waits for it while the processes run."""
    deadline = time.monotonic() + most
    while not seen():
        assert time.monotonic() < deadline
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)


def in_a_round(home: Path) -> bool:
    """Whether a weight round is in flight, some of its updates done."""
    return any(p.read_text() not in ("", "6") for p in home.glob("rounds/*.part/updates"))


def updates_run(home: Path) -> int:
    return len((home / "updates.log").read_text().splitlines())


def test_three_workers_end_with_the_table_of_one(cluster: Cluster, alone: tuple[Path, Any]) -> None:
    reports = [finish(worker) for worker in [cluster.start() for _ in range(3)]]
    for report in reports:
        assert arms_of(report) == arms_of(alone[1])
    assert timeless(reports[0]) == timeless(reports[1]) == timeless(reports[2])
    cluster.assert_runs_are_whole()
    assert cluster.leases() == {}
    assert not (cluster.home / "optuna.db").exists()
    assert not (cluster.home / "mlflow.db").exists()
    assert PASSWORD not in "".join(p.read_text(errors="replace") for p in cluster.home.rglob("*") if p.is_file())


def test_a_worker_that_is_killed_amid_a_round_leaves_it_to_another(cluster: Cluster, alone: tuple[Path, Any]) -> None:
    first = cluster.start()
    until(lambda: in_a_round(cluster.home), first)
    held = cluster.leases()
    end(first)
    assert any("/trial-" in name for name in held)
    whole = finish(cluster.start())
    assert timeless(whole) == timeless(alone[1])
    assert started_rounds(cluster.home) == started_rounds(alone[0])
    assert updates_run(cluster.home) <= updates_run(alone[0]) + 1  # the one that was cut
    cluster.assert_runs_are_whole()


def test_one_of_three_workers_killed_leaves_the_arms_as_they_are(cluster: Cluster, alone: tuple[Path, Any]) -> None:
    rng, workers = random.Random(time.time_ns()), [cluster.start() for _ in range(3)]
    until(lambda: in_a_round(cluster.home), *workers)
    time.sleep(rng.uniform(0, 3))
    end(workers.pop(rng.randrange(3)))
    reports = [finish(worker) for worker in workers]
    for report in reports:
        assert arms_of(report) == arms_of(alone[1])
    cluster.assert_runs_are_whole()


def test_a_database_that_is_killed_amid_a_study_changes_nothing(cluster: Cluster, alone: tuple[Path, Any]) -> None:
    workers = [cluster.start() for _ in range(2)]
    until(lambda: in_a_round(cluster.home), *workers)
    for pause in (0.5, 2.0):
        cluster.database.kill()
        time.sleep(pause)
        cluster.database.start()
        time.sleep(2.0)
    reports = [finish(worker) for worker in workers]
    for report in reports:
        assert arms_of(report) == arms_of(alone[1])
        assert report["failures"] == []
    assert timeless(reports[0]) == timeless(reports[1])
    cluster.assert_runs_are_whole()


def test_a_tracking_server_that_is_killed_amid_a_study_is_waited_for(cluster: Cluster, alone: tuple[Path, Any]) -> None:
    workers = [cluster.start() for _ in range(2)]
    until(lambda: in_a_round(cluster.home), *workers)
    cluster.mlflow.kill()
    time.sleep(2.0)
    cluster.mlflow.start()
    reports = [finish(worker) for worker in workers]
    for report in reports:
        assert arms_of(report) == arms_of(alone[1])
        assert report["failures"] == []
    cluster.assert_runs_are_whole()


def test_a_worker_that_sleeps_too_long_is_told_and_another_has_its_trial(
    cluster: Cluster, alone: tuple[Path, Any]
) -> None:
    sleeps = cluster.start()
    until(lambda: in_a_round(cluster.home), sleeps)
    sleeps.send_signal(signal.SIGSTOP)
    try:
        whole = finish(cluster.start())
    finally:
        sleeps.send_signal(signal.SIGCONT)
    _, said = sleeps.communicate(timeout=120)
    assert sleeps.returncode != 0
    assert "was lost: it was not renewed" in said
    assert timeless(whole) == timeless(alone[1])
    cluster.assert_runs_are_whole()


def colever(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    code = "import sys; sys.argv[0] = 'colever'; from colever.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    cluster.started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return cluster.started[-1]


def test_workers_of_the_command_line_share_a_study_of_the_seed_model(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker waits for the study; one is ended by SIGTERM; another takes over; the stores are named once."""
    for variable in ("COLEVER_DATABASE", "COLEVER_MLFLOW"):
        monkeypatch.delenv(variable)
    named = ["--database", cluster.url, "--mlflow", cluster.mlflow.url, "--home", str(cluster.home)]
    small = ["weights.updates=4", "weights.examples_per_update=4", "weights.group_size=4", "prompt.candidates=2",
             "prompt.screen=8", "prompt.examples=16", "elsewhere=[]"]  # fmt: skip
    settings = [part for setting in small for part in ("--set", setting)]
    task = Path(__file__).parents[2] / "examples" / "last_word.py"
    waits = colever(cluster, "worker", "--study", "shared", *named)
    begins = colever(
        cluster, "sweep", f"{task}:task", "--study", "shared", "--trials", "2", "--json", *settings, *named
    )
    until(lambda: any("/trial-" in name for name in _leases(cluster)), waits, begins)
    waits.send_signal(signal.SIGTERM)
    _, said = waits.communicate(timeout=120)
    assert waits.returncode == 143, said
    assert "not there yet: waiting" in said
    assert "ended by SIGTERM" in said
    follows = colever(
        cluster, "worker", "--study", "shared", "--home", str(cluster.home)
    )  # finds the stores that were saved
    out, said = begins.communicate(timeout=500)
    assert begins.returncode == 0, said
    report = json.loads(out)
    _, said = follows.communicate(timeout=300)
    assert follows.returncode == 0, said
    assert cluster.leases() == {}
    cluster.assert_runs_are_whole(trials=2)
    again = colever(cluster, "report", "shared", "--json", "--home", str(cluster.home))
    assert json.loads(again.communicate(timeout=120)[0])["table"] == report["table"]
    saved = (cluster.home / "stores.yaml").read_text()
    assert cluster.mlflow.url in saved
    assert PASSWORD not in saved


def _leases(cluster: Cluster) -> dict[str, str]:
    import psycopg

    try:
        return cluster.leases()
    except psycopg.errors.UndefinedTable:
        return {}
