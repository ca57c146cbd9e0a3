"""SIGKILL at random moments: the same command ends with the report of an uninterrupted run, times aside."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 10


def timeless(value: Any) -> Any:
    """Without seconds, which no two runs share."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def start(home: Path, pause: float = 0.2) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("toy_study.py")), str(home), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_with_the_same_report(tmp_path: Path) -> None:
    started = time.monotonic()
    whole = finish(start(tmp_path / "whole"))
    length = time.monotonic() - started
    rng, killed = random.Random(time.time_ns()), 0
    moments = sorted(rng.uniform(0.2, 1.0) * length for _ in range(KILLS))
    rng.shuffle(moments)
    for moment in moments:
        process = start(tmp_path / "killed")
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        else:
            assert process.returncode == 0, process.communicate()[1][-3000:]
    assert killed
    assert timeless(finish(start(tmp_path / "killed"))) == timeless(whole)
    rounds = sorted(p.name for p in (tmp_path / "whole" / "rounds").iterdir() if p.is_dir())
    assert sorted(p.parent.name for p in (tmp_path / "killed" / "rounds").glob("*/record.json")) == rounds


@pytest.mark.slow
def test_no_tracked_run_is_left_twice_or_running(tmp_path: Path) -> None:
    import mlflow

    for moment in (12, 18):
        process = start(tmp_path)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    finish(start(tmp_path))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    trials = [r for r in runs if r.data.tags.get("kind") == "trial"]
    assert sorted(r.data.tags["trial"] for r in trials) == [str(i) for i in range(6)]
    assert sum(r.data.tags.get("kind") == "study" for r in runs) == 1
    rounds = [(r.data.tags["trial"], r.data.tags["round"]) for r in runs if r.data.tags.get("kind") == "round"]
    assert len(rounds) == len(set(rounds))
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED"}


@pytest.mark.slow
def test_ctrl_c_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path / "cut")
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    process.wait(60)
    assert timeless(finish(start(tmp_path / "cut"))) == timeless(finish(start(tmp_path / "whole")))
