"""A real vLLM server on this CPU: what it samples, its swaps, a trial through it, and its death in the middle of one.

``make test-slow`` makes an environment with vLLM for it; COLEVER_VLLM_PYTHON names the python of another one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import EngineConformance

from colever.engines.lm import open_engine, seed_path
from colever.engines.vllm_engine import VllmEngine
from colever.engines.vllm_server import PYTHON, Serving
from colever.errors import InfrastructureError, UsageError
from colever.optimizers.study import StudyFolder
from colever.types import Weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get(PYTHON), reason=f"{PYTHON} is not set: run by make test-slow"),
]
SMALL = {
    "weights.updates": 2, "weights.examples_per_update": 4, "weights.group_size": 4, "prompt.candidates": 1,
    "prompt.screen": 4, "prompt.examples": 8, "prompt.finalists": 1, "elsewhere": "[]",
}  # fmt: skip
TASK = """
from dataclasses import replace
from colever.tasks.load import load_task

whole = load_task("arithmetic")
task = replace(whole, dev=whole.dev[:32], test=whole.test[:32], watched={})
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engine(told: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    log = tmp_path_factory.mktemp("served") / "vllm.log"
    made = open_engine("seed", serving=Serving(log=log, told=told.append))
    assert isinstance(made, VllmEngine)
    made.load(Weights())
    yield made
    made.close()


class TestVllmServer(EngineConformance):
    """On the fixture above: the seed model in float32 on a CPU."""

    close = 2e-3


def arguments(task: Path, home: Path, schedule: str) -> list[Any]:
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    return ["optimize", f"{task}:task", "--schedule", schedule, "--engine", "vllm", "--home", home, *settings]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "small.py").write_text(TASK)
    return tmp_path / "small.py"


def rounds_of(home: Path, task: Path, schedule: str) -> Any:
    """The study's records, without values: what there is, not what came out."""
    folder = StudyFolder(home, f"small-task-seed-s0-{schedule.replace(',', '')}")
    state = folder.state()
    assert state is not None
    assert state.finished
    (trial,) = folder.trials(state)
    assert trial.state == "complete"
    return trial.rounds


def shape(value: Any) -> Any:
    """Keys, and kinds of values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return type(value).__name__ if not isinstance(value, int | float) else "number"


def test_a_trial_of_both_levers_and_the_same_with_the_server_killed(
    run: Callable[..., tuple[int, str, str]], task: Path, tmp_path: Path
) -> None:
    status, _, err = run(*arguments(task, tmp_path / "whole", "p,w,p"))
    assert status == 0, err
    assert err.count("vLLM: serving after") == 1  # one server for all of it
    whole = rounds_of(tmp_path / "whole", task, "p,w,p")
    assert [r.lever for r in whole] == ["prompt", "weights", "prompt"]
    trained = whole[1]
    assert trained.child.weights.kind == "lora"
    assert max(v for _, v in trained.metrics["logprob_gap"]) < 0.02
    assert max(v for _, v in trained.metrics["logprob_gap_mean"]) < 1e-3
    assert all(abs(ratio - 1) < 0.02 for _, ratio in trained.metrics["importance_ratio"])
    log = tmp_path / "whole" / "studies" / "small-task-seed-s0-pwp" / "vllm.log"
    assert "the server ended with status" in log.read_text()

    killed: list[int] = []
    home = tmp_path / "killed"
    watch = threading.Thread(target=_kill_in_the_weight_round, args=(home, killed), daemon=True)
    watch.start()
    status, _, err = run(*arguments(task, home, "p,w,p"))
    assert status == 0, err
    assert killed
    assert "the server is started again" in err
    again = rounds_of(home, task, "p,w,p")
    for one, two in zip(whole, again, strict=True):
        assert shape(one.to_json()) == shape(two.to_json())
        assert two.after.infrastructure_failures == two.before.infrastructure_failures == 0
        assert one.parent.prompts == two.parent.prompts


def _kill_in_the_weight_round(home: Path, killed: list[int]) -> None:
    """kill -9 of the server once an adapter was loaded into it: between two updates, or in one."""
    log = home / "studies" / "small-task-seed-s0-pwp" / "vllm.log"
    while not (log.exists() and "Loaded new LoRA adapter" in log.read_text()):
        time.sleep(0.02)
    process = max(_servers(), key=lambda folder: int(_stat(folder)[19]))  # that of the module's engine is older
    os.kill(int(process.name), signal.SIGKILL)
    killed.append(int(process.name))


def _servers() -> Iterator[Path]:
    """Servers whose watchers this process has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            server = b"vllm.entrypoints.openai.api_server" in (folder / "cmdline").read_bytes().split(b"\0")
            watcher = Path("/proc") / _stat(folder)[1]
            if server and int(_stat(watcher)[1]) == os.getpid():
                yield folder
        except OSError:
            continue


def _stat(folder: Path) -> list[str]:
    """State, parent and so on, as in proc(5) from its third field."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def test_two_workers_share_one_server(task: Path, tmp_path: Path) -> None:
    sets = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    command = [
        *(sys.executable, "-c", "from colever.cli import main; main()", "sweep", f"{task}:task", "--workers", "2"),
        *("--trials", "2", "--engine", "vllm", "--home", str(tmp_path), "--json", *sets),
        *("--set", "schedules=[w, 'p,w']", "--set", "weights.learning_rate=1e-4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = StudyFolder(tmp_path, "small-task-seed-s0")
    state = folder.state()
    assert state is not None
    assert [trial.state for trial in folder.trials(state)] == ["complete", "complete"]
    log = (folder.path / "vllm.log").read_text()
    assert log.count("the server ended with status") == 1  # it was started once
    names = re.findall(r"Loaded new LoRA adapter: name '(\S+?)'", log)
    assert len(names) == len(set(names)) >= 3  # a name is one state of one worker's weights
    second = (folder.path / "worker-2.log").read_text()
    assert "trial " in second
    assert (done.stderr + second).count("vLLM: serving") == 1


def test_a_wrong_model_a_wrong_argument_and_no_server_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no vLLM server answers there"):
        open_engine("seed", serving=Serving(url="http://127.0.0.1:9/v1"))
    with pytest.raises(UsageError, match="has no vLLM"):
        open_engine("seed", serving=Serving(python=sys.executable))
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_engine(tmp_path / "no-such-model", serving=Serving())
    odd = open_engine("seed", serving=Serving(args=("--no-such-flag",), log=tmp_path / "vllm.log"))
    with pytest.raises(InfrastructureError, match=r"ended while it started: .*no-such-flag.*log: "):
        odd.load(Weights())


def test_a_server_at_an_address_is_used_as_it_runs(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    live = engine.server.ensure()
    with pytest.raises(UsageError, match=r"it refused to say .* set HOSTED_VLLM_API_KEY"):
        open_engine("seed", serving=Serving(url=live.client.address))
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", live.client.headers["Authorization"].removeprefix("Bearer "))
    there = open_engine("seed", serving=Serving(url=f"{live.client.address}/v1"))
    requests = EngineConformance().requests(there)
    assert [m.completion_ids for m in there.generate(requests)] == [m.completion_ids for m in engine.generate(requests)]
    assert there.digest == engine.digest
    assert str(seed_path()) == there.source
