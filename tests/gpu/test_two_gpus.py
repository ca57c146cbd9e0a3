"""Two processes on two GPUs, each with the model or a share of it, come to what one process comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")]
SCRIPT = Path(__file__).parents[1] / "slow" / "two_processes.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
CASES = {"full weights": {}, "lora, KL": {"peft": "lora", "beta": 0.05}}


def launch(launcher: tuple[str, ...], checkpoint: Path, workdir: Path, sharding: str) -> dict[str, Any]:
    cases = {name: {**case, "sharding": sharding} for name, case in CASES.items()}
    command = [*launcher, str(SCRIPT), str(checkpoint), str(workdir), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((workdir / name / "result-0.json").read_text()) for name in cases}


@pytest.fixture(scope="module")
def one(tiny_checkpoint, tmp_path_factory):
    return launch((sys.executable,), tiny_checkpoint, tmp_path_factory.mktemp("one"), "none")


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_come_to_what_one_comes_to(tiny_checkpoint, tmp_path, one, sharding) -> None:
    two = launch(TORCHRUN, tiny_checkpoint, tmp_path, sharding)
    for name in CASES:
        assert two[name]["processes"] == 2
        for curve in ("loss", "grad_norm", "reward"):
            values = [[v for _, v in found[name]["curves"][curve]] for found in (two, one)]
            assert values[0] == pytest.approx(values[1], rel=1e-2, abs=1e-4), (name, curve)
