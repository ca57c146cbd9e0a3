"""``mlflow models serve`` answers with a registered version's program, weights and prompts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from postgres import free_port
from shipped import run_sum_study, sum_task

import colever
from colever.optimizers.attribution import report_of
from colever.optimizers.evaluate import evaluate
from colever.optimizers.study import find_study
from colever.ship.export import chosen
from colever.tracking import store
from colever.tracking.registry import register

pytestmark = pytest.mark.slow


def posted(url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/invocations",
        json.dumps({"dataframe_records": rows}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return list(json.load(response)["predictions"])


def await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)


def test_a_registered_version_is_served(empty_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(store.database(empty_home), home / "mlflow.db")
    run_sum_study(home, sum_task(home / "tasks"), "lora", {"peft": "lora"})
    folder = find_study(home, "lora")
    state = folder.state()
    assert state is not None
    made = replace(folder.trials(state)[0].rounds[0], accepted=True)  # whether or not its few updates were a gain
    report, settings = replace(report_of(folder), path=(made,), winner="w"), folder.manifest()
    client = store.open_client(home)
    run = client.create_run(store.experiment(client, home, report.task))
    register(client, run, report, settings["config"], settings)
    version = client.search_model_versions(f"run_id = '{run.info.run_id}'")[0]

    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{version.name}/{version.version}",
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it runs uvicorn by its bare name
    environment = {**os.environ, **store.OFFLINE, "MLFLOW_TRACKING_URI": store.tracking_uri(home), "PATH": path}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        await_health(url, process, log)
        task = colever.load_task(state.task)
        rows = task.examples("test")[:8]
        candidate, _ = chosen(folder, state, "0.1")
        expected = evaluate(candidate, task, colever.seed_lm().engine, "test", limit=8)
        answers = posted(url, [dict(row.inputs()) for _, row in rows])
        scores = [task.score(row, dspy.Prediction(**answer), ()).total if "error" not in answer else 0.0
                  for (_, row), answer in zip(rows, answers, strict=True)]  # fmt: skip
        assert scores == list(expected.scores)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
