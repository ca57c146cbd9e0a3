"""Two processes on a CPU, each with the model or a share of it: they come to what one comes to, and end together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_disk import small_disk

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "two_processes.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# The flag picks torch's launcher; that the processes are on a CPU is the engine's doing.
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip
ALONE = (sys.executable,)

CASES = {
    "dapo": {"loss": "dapo"},
    "grpo in parts": {"loss": "grpo", "scale_rewards": "batch", "batch_tokens": 64},
    "dr_grpo, KL, full weights": {"loss": "dr_grpo", "beta": 0.05},
    "bnpo, KL, lora": {"loss": "bnpo", "peft": "lora", "beta": 0.05},
    "dapo, dora": {"loss": "dapo", "peft": "dora"},
    "cispo, ratios": {"loss": "cispo", "importance_correction": "on", "batch_tokens": 100},
    "held-out examples": {"validation": 3, "validate_every": 1, "patience": 2, "updates": 6},
    "one held-out example": {"validation": 1, "validate_every": 1, "patience": 9},
    "trajectories of two calls": {"task": "twice", "grouping": "trajectory", "batch_tokens": 200},
    "a process without examples": {"examples_per_update": 1, "group_size": 8},
    "updates without rows": {"task": "rare", "examples_per_update": 1, "group_size": 8},
    "an adapter per predictor": {"task": "pair", "peft": "lora", "adapters": "per_predictor"},
    "an adapter per predictor, KL": {"task": "pair", "peft": "lora", "adapters": "per_predictor", "beta": 0.05},
    "curriculum": {"task": "rare", "curriculum": True, "examples_per_update": 3},
}


def launch(launcher: tuple[str, ...], checkpoint: Path, workdir: Path, cases: dict, processes: int) -> list[dict]:
    """Each case's results by process. A process that hangs or dies fails the test."""
    command = [*launcher, str(SCRIPT), str(checkpoint), str(workdir), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [json.loads((workdir / name / f"result-{rank}.json").read_text()) for rank in range(processes)]
        for name in cases
    }


@pytest.fixture(scope="module")
def one(tiny_checkpoint, tmp_path_factory):
    return launch(ALONE, tiny_checkpoint, tmp_path_factory.mktemp("one"), CASES, 1)


@pytest.fixture(scope="module")
def two(tiny_checkpoint, tmp_path_factory):
    return launch(TORCHRUN, tiny_checkpoint, tmp_path_factory.mktemp("two"), CASES, 2)


@pytest.fixture(scope="module")
def shared(tiny_checkpoint, tmp_path_factory):
    """By two, each with a share of the model."""
    cases = {name: {**case, "sharding": "fsdp"} for name, case in CASES.items()}
    return launch(TORCHRUN, tiny_checkpoint, tmp_path_factory.mktemp("shared"), cases, 2)


def assert_same(ours: dict, theirs: dict) -> None:
    """But for what each process computes for itself: a prefix, and so prompt tokens and FLOPs."""
    assert (ours["processes"], theirs["processes"]) == (2, 1)
    for name in ("rollouts", "completion_tokens", "trained_tokens"):
        assert ours["spent"][name] == theirs["spent"][name], name
    assert theirs["spent"]["trained_tokens"] > 0
    assert ours["curves"].keys() == theirs["curves"].keys()
    for name in ours["curves"].keys() - {"logprob_gap"}:
        values = [[v for _, v in found["curves"][name]] for found in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-5), name
    for name in ("updates", "stopped", "best_update"):
        assert ours["notes"].get(name) == theirs["notes"].get(name), name
    looks = [[score for _, score in found["notes"].get("validation", [])] for found in (ours, theirs)]
    assert looks[0] == pytest.approx(looks[1])
    trained = [tensors(Path(found["weights"])) for found in (ours, theirs)]
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.allclose(trained[0][name], trained[1][name], atol=2e-5) for name in trained[0])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files of trained weights: a set of adapters has one per predictor."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return {f"{f.relative_to(folder)}:{name}": t for f in files for name, t in load_file(str(f)).items()}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_come_to_what_one_comes_to(one, two, case) -> None:
    assert_same(two[case][0], one[case][0])
    assert two[case][1]["digest"] == two[case][0]["digest"]  # both were told the same child


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_shared_out_comes_to_what_a_whole_one_comes_to(one, shared, case) -> None:
    assert_same(shared[case][0], one[case][0])
    assert shared[case][1]["digest"] == shared[case][0]["digest"]


def test_each_process_has_half_of_what_training_holds(tiny_checkpoint) -> None:
    """Parameters, gradients and optimizer state; what does not divide evenly is padded."""
    command = [*TORCHRUN, str(SCRIPT.with_name("shares.py")), str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 4  # full weights and an adapter, by two
    for held in found:
        assert held["whole"] > 0
        assert 0.49 < held["share"] / held["whole"] < 0.51, held
        assert held["left"] == 0  # of the engine's own model, until it is whole again


def test_the_cases_are_what_they_are_called(one) -> None:
    """Updates without rows follow one whose momentum they must not use; a stop puts the best weights back."""
    rows = [value for _, value in one["updates without rows"][0]["curves"]["trained_rows"]]
    assert rows == [8, 0, 0]
    stopped = one["held-out examples"][0]["notes"]
    assert "no better score" in stopped["stopped"]
    assert stopped["best_update"] < stopped["updates"]


def test_accelerate_launches_two_processes_on_a_cpu(tiny_checkpoint, tmp_path, one) -> None:
    case = "bnpo, KL, lora"
    assert_same(launch(ACCELERATE, tiny_checkpoint, tmp_path, {case: CASES[case]}, 2)[case][0], one[case][0])


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_rubric_that_breaks_in_one_process_ends_both_which_can_go_on(
    tiny_checkpoint, tmp_path, one, sharding
) -> None:
    how = {"sharding": sharding}
    cases = {"broken": {"task": "breaks", **how}, "dapo": {**CASES["dapo"], **how}}
    found = launch(TORCHRUN, tiny_checkpoint, tmp_path, cases, 2)
    first, second = found["broken"]
    assert first["error"] == second["error"] == "TaskError"
    assert "no such luck" in second["message"]
    assert first["message"] == f"process 1: {second['message']}"
    assert_same(found["dapo"][0], one["dapo"][0])


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_full_disk_in_the_first_process_ends_both_and_the_same_call_goes_on(
    tiny_checkpoint, tmp_path, sharding
) -> None:
    cases = {"dapo": CASES["dapo"] | {"save_every": 1, "sharding": sharding}}
    whole = launch(TORCHRUN, tiny_checkpoint, tmp_path / "whole", cases, 2)["dapo"]
    with small_disk(tmp_path / "cut", megabytes=2) as disk:
        first, second = launch(TORCHRUN, tiny_checkpoint, disk.folder, cases, 2)["dapo"]
        assert first["error"] == second["error"] == "LeverError"
        assert "the checkpoint after 2 updates cannot be written" in first["message"]
        assert "the disk is full" in first["message"]
        assert second["message"] == f"process 0: {first['message']}"
        disk.grow(64)
        again = launch(TORCHRUN, tiny_checkpoint, disk.folder, cases, 2)["dapo"]
    assert [found["digest"] for found in again] == [found["digest"] for found in whole]
    assert again[0]["spent"] == whole[0]["spent"]
