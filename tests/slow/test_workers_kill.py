"""Several processes on one study, one of them killed; databases that are busy, or gone when the study goes on."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from small_disk import small_disk
from test_kill import finish, start, timeless


def runs_of(home: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))


def assert_runs_are_whole(home: Path) -> None:
    """One study, six trials, each round once, nothing left running."""
    runs = runs_of(home)
    kinds = [r.data.tags.get("kind") for r in runs]
    assert (kinds.count("study"), kinds.count("base")) == (1, 1)
    assert sorted(r.data.tags["trial"] for r in runs if r.data.tags["kind"] == "trial") == [str(i) for i in range(6)]
    rounds = [(r.data.tags["trial"], r.data.tags["round"]) for r in runs if r.data.tags["kind"] == "round"]
    assert len(rounds) == len(set(rounds))
    assert {r.info.status for r in runs} == {"FINISHED"}


def arms_of(report: Any) -> Any:
    """The arms that any number of workers must agree on: those of the first four trials."""
    return [arm for arm in timeless(report["arms"]) if arm["trial"] < 4]


def started_rounds(home: Path) -> list[str]:
    return sorted(p.parent.name for p in (home / "rounds").glob("*/record.json"))


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_one_of_three_workers_killed_leaves_the_arms_as_they_are(tmp_path: Path) -> None:
    whole = finish(start(tmp_path / "alone"))
    home, rng = tmp_path / "three", random.Random(time.time_ns())
    workers = [start(home) for _ in range(3)]
    time.sleep(rng.uniform(5, 20))
    end(workers[0])
    workers[0] = start(home)  # and one more joins
    time.sleep(rng.uniform(0, 8))
    end(workers[1])
    reports = [finish(workers[0]), finish(workers[2])]
    for report in reports:
        assert arms_of(report) == arms_of(whole)
    assert timeless(reports[0]) == timeless(reports[1])
    assert_runs_are_whole(home)


@pytest.mark.slow
def test_databases_that_are_gone_when_a_study_goes_on_are_made_again(tmp_path: Path) -> None:
    whole = finish(start(tmp_path / "whole"))
    home = tmp_path / "lost"
    for name in ("mlflow.db", "optuna.db"):
        process = start(home)
        try:
            process.wait(14)
        except subprocess.TimeoutExpired:
            end(process)
        (home / name).unlink(missing_ok=True)
        for beside in home.glob(f"{name}-*"):
            beside.unlink()
    assert timeless(finish(start(home))) == timeless(whole)
    assert started_rounds(home) == started_rounds(tmp_path / "whole")
    assert_runs_are_whole(home)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_a_database_that_is_busy_for_a_while_is_waited_for(tmp_path: Path, name: str) -> None:
    process = start(tmp_path)
    while not (tmp_path / name).exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(4)
    with sqlite3.connect(tmp_path / name, timeout=60, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(8)
        other.execute("ROLLBACK")
    finish(process)
    assert_runs_are_whole(tmp_path)


@pytest.mark.slow
def test_a_study_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    whole = finish(start(tmp_path / "whole", 0.0))
    said = []
    with small_disk(tmp_path / "cut", 0.5) as disk:
        for megabytes in (1, 2, 3, 4, 6, 8, 12, 16, 32):
            process = start(disk.folder, 0.0)
            out, err = process.communicate(timeout=600)
            if process.returncode == 0:
                break
            said.append(err.splitlines()[-1])
            disk.grow(megabytes)
        assert timeless(json.loads(out.splitlines()[-1])) == timeless(whole)
        assert_runs_are_whole(disk.folder)
    assert len(said) >= 2
    for line in said:
        assert "No space left on device" in line or "full" in line, said
