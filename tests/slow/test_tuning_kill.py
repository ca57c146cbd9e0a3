"""Tuning a rubric that is killed by SIGKILL, again and again, ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_openai import ScriptedOpenAI
from test_rubric_tuning import DESIGN, wrapped

pytestmark = pytest.mark.slow
RUN = Path(__file__).parent / "tuning_run.py"


def started(home: Path, server: ScriptedOpenAI) -> subprocess.Popen[str]:
    command = [sys.executable, str(RUN), str(home), server.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return dict(json.loads(out.splitlines()[-1]))


def stored(home: Path) -> int:
    return len([*home.glob("rounds/*/record.json"), *home.glob("evaluations/*.json")])


def test_a_killed_tuning_ends_like_a_whole_one(tmp_path: Path) -> None:
    with ScriptedOpenAI(lambda messages: wrapped(DESIGN)) as server:
        whole = finished(started(tmp_path / "whole", server))
        asked, most = len(server.asked), stored(tmp_path / "whole")
        assert asked == 2
        for kill in range(1, 7):
            process = started(tmp_path / "cut", server)
            while stored(tmp_path / "cut") < kill * most // 8 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "it had ended before the kill"
            assert not (tmp_path / "cut" / "tunings" / "t" / "tuning.json").exists()
        assert finished(started(tmp_path / "cut", server)) == whole
        assert len(server.asked) == 2 * asked
