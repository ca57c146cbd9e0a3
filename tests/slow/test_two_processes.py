"""Data-parallel training under ``torchrun``: two processes come to what one comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "two_processes.py"


def run(processes: int, checkpoint: Path, workdir: Path, changes: dict) -> dict:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch = [sys.executable] if processes == 1 else launcher
    command = [*launch, str(SCRIPT), str(checkpoint), str(workdir), json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines()[::-1] if line.startswith("{")))


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "dapo", "updates": 3},
        {"loss": "grpo", "updates": 3, "scale_rewards": "batch", "batch_tokens": 64},
        {"loss": "dapo", "updates": 3, "peft": "lora", "adapters": "per_predictor"},
    ],
    ids=["dapo", "grpo in parts", "an adapter per predictor"],
)
def test_two_processes_come_to_what_one_comes_to(tiny_checkpoint, tmp_path, changes) -> None:
    one = run(1, tiny_checkpoint, tmp_path / "one", changes)
    two = run(2, tiny_checkpoint, tmp_path / "two", changes)
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in (
        "rollouts",
        "completion_tokens",
        "trained_tokens",
    ):  # a prefix is computed in each process that needs it
        assert one["spent"][name] == two["spent"][name], name
    assert one["spent"]["trained_tokens"] > 0
    for name in ("reward", "constant_share", "loss", "grad_norm", "entropy"):
        ours, theirs = ([v for _, v in found["curves"][name]] for found in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), name
    files = sorted((tmp_path / "one" / "weights").rglob("*.safetensors"))
    assert len(files) == (2 if "adapters" in changes else 1)
    for file in files:
        ours, theirs = load_file(str(tmp_path / "two" / file.relative_to(tmp_path / "one"))), load_file(str(file))
        assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)
