"""A real sweep on the seed model, killed with SIGKILL at ten random moments: the report is the uninterrupted one's."""

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

SETTINGS = ["weights.updates=12", "weights.examples_per_update=8", "weights.save_every=3", "prompt.candidates=4",
            "prompt.screen=16", "prompt.examples=32"]  # fmt: skip


def command(home: Path) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    program = str(Path(sys.executable).parent / "colever")
    return [program, "sweep", "arithmetic", "--json", "--home", str(home), *settings]


def without_times(value: Any) -> Any:
    """A report without wall times."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "seconds"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path) -> None:
    started = time.monotonic()
    done = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, check=True)
    whole, seconds = json.loads(done.stdout), time.monotonic() - started
    rng, kills, output = random.Random(0), 0, ""
    while not output:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command(tmp_path / "killed"), **pipes)
        try:
            wait = rng.uniform(2.0, seconds / 5) if kills < 10 else None
            output, error = process.communicate(timeout=wait)
            assert process.returncode == 0, error
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills, output = kills + 1, ""
    killed = json.loads(output)
    assert kills == 10
    for key in ("table", "effects", "parts", "arms", "thresholds", "winner", "watched"):
        assert without_times(killed[key]) == without_times(whole[key]), key
