"""`colever optimize --processes 2`: what one process makes, nobody left behind, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
COLEVER = [sys.executable, "-c", "from colever.cli import main; main()"]
TASK = f"{Path(__file__).with_name('vowels.py')}:task"
SMALL = {
    "weights.peft": "none", "weights.updates": 8, "weights.examples_per_update": 5, "weights.group_size": 4,
    "weights.learning_rate": 1e-3, "weights.warmup": 1, "weights.save_every": 1, "sample_rollouts": 0,
}  # fmt: skip


def command(checkpoint: Path, home: Path, processes: int, task: str = TASK, **changes: Any) -> list[str]:
    sets = [f"{name}={value}" for name, value in {**SMALL, **changes}.items()]
    words = [*COLEVER, "optimize", task, "--model", str(checkpoint), "--schedule", "w", "--study", "s", "--json"]
    return [*words, "--home", str(home), "--processes", str(processes), *(x for s in sets for x in ("--set", s))]


def start(*which: Any, **changes: Any) -> subprocess.Popen[str]:
    interrupts = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    made = command(*which, **changes)
    return subprocess.Popen(made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **interrupts)


def finished(process: subprocess.Popen[str], home: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The only round's record and weights; nobody of the command is left."""
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    (record,) = (home / "rounds").glob("*/record.json")
    return json.loads(record.read_text())["value"]["record"], load_file(
        str(record.parent / "weights" / "model.safetensors")
    )


def training(process: subprocess.Popen[str], home: Path, update: int) -> list[psutil.Process]:
    """The command's further processes, once a checkpoint after so many updates is there."""
    deadline = time.monotonic() + 300
    while not list((home / "rounds").glob(f"*/training/checkpoint-{update}/pull.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


def assert_same(ours: tuple[dict, dict], theirs: tuple[dict, dict], atol: float) -> None:
    (record, weights), (other, expected) = ours, theirs
    assert record["key"] == other["key"]
    for name in ("rollouts", "completion_tokens", "trained_tokens"):
        assert record["cost"][name] == other["cost"][name], name
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=atol) for name in expected)


SHARED = {"training.sharding": "fsdp"}


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory):
    """By one process, by two that nobody disturbed, and by two with a share of the model each."""
    made = {}
    for name, processes, how in (("one", 1, {}), ("two", 2, {}), ("shared", 2, SHARED)):
        home = tmp_path_factory.mktemp(name)
        made[name] = finished(start(tiny_checkpoint, home, processes, **how), home)
    return made


@pytest.mark.parametrize("how", ["two", "shared"])
def test_two_processes_make_the_round_of_one(whole, how) -> None:
    assert_same(whole[how], whole["one"], atol=2e-5)


@pytest.mark.parametrize(("name", "how"), [("two", {}), ("shared", SHARED)])
def test_a_process_that_is_killed_ends_the_command_which_goes_on(tiny_checkpoint, tmp_path, whole, name, how) -> None:
    process = start(tiny_checkpoint, tmp_path, 2, **how)
    (member,) = (p for p in training(process, tmp_path, 2) if "spawn_main" in " ".join(p.cmdline()))
    member.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "process 1, which trains along: ended (exit code -9)" in err
    assert "process-1.log" in err
    assert not list((tmp_path / "rounds").glob("*/record.json"))
    assert_same(finished(start(tiny_checkpoint, tmp_path, 2, **how), tmp_path), whole[name], atol=0.0)


@pytest.mark.parametrize(
    ("how", "first", "then"),
    [(signal.SIGINT, SHARED, {}), (signal.SIGTERM, {}, SHARED), (signal.SIGKILL, SHARED, SHARED)],
)
def test_what_ends_the_command_ends_all_and_it_goes_on_in_another_way(
    tiny_checkpoint, tmp_path, whole, how, first, then
) -> None:
    process = start(tiny_checkpoint, tmp_path, 2, **first)
    further = training(process, tmp_path, 2)
    assert further
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert "the same command continues" in err
    _, alive = psutil.wait_procs(further, timeout=60)
    assert not alive
    again = start(tiny_checkpoint, tmp_path, 2 if then else 1, **then)
    assert_same(finished(again, tmp_path), whole["one"], atol=2e-5)


def test_a_process_that_cannot_begin_says_why(tiny_checkpoint, tmp_path) -> None:
    task = tmp_path / "once.py"
    task.write_text(
        "import multiprocessing, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from vowels import task\n"
        "if multiprocessing.parent_process() is not None:\n"
        "    raise OSError('no such disk here')\n"
    )
    words = command(tiny_checkpoint, tmp_path, 2, f"{task}:task")
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "process 1, which trains along: task file" in done.stderr
    assert "no such disk here" in done.stderr
