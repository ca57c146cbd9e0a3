"""A pull of the prompt lever that is killed by SIGKILL goes on, whichever optimizer it was in the middle of."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_openai import ScriptedOpenAI
from test_prompt_ways import written

from colever.config import PROMPT_WAYS

pytestmark = pytest.mark.slow
PULL = Path(__file__).parent / "prompt_pull.py"


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(written) as running:
        yield running


def started(way: str, server: ScriptedOpenAI, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(PULL), way, server.address, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return dict(json.loads(out.splitlines()[-1]))


def batches(folder: Path) -> list[dict[str, Any]]:
    file = folder / "rollouts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def lines(folder: Path) -> int:
    return sum((folder / name).read_bytes().count(b"\n") for name in JOURNALS if (folder / name).exists())


JOURNALS = ("rollouts.jsonl", "proposals.jsonl")


@pytest.mark.parametrize("way", PROMPT_WAYS)
def test_a_killed_pull_repeats_nothing_that_it_had_finished(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    whole = finished(started(way, server, tmp_path / "whole"))
    asked = len(server.asked)
    process, half = started(way, server, tmp_path / "cut"), lines(tmp_path / "whole") // 2
    while lines(tmp_path / "cut") < half and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it had ended before the kill"
    again = finished(started(way, server, tmp_path / "cut"))
    if way == "simba":  # what its threads ask at the same time varies, and with it how many prompt tokens are shared
        for told in (again, whole):
            told["spent"] = {k: told["spent"][k] for k in ("rollouts", "completion_tokens", "proposer_calls")}
    assert again == whole
    run = Counter(key for batch in batches(tmp_path / "cut") for key in batch["rollouts"])
    assert max(run.values()) == 1
    assert set(run) == {key for batch in batches(tmp_path / "whole") for key in batch["rollouts"]}
    assert len(server.asked) - asked <= asked + 1  # the one that was under way
