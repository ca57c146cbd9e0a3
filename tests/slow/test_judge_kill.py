"""SIGKILL while a judge is asked: the same command ends with the same report, and asks for nothing that was kept."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judging import script
from scripted_openai import ScriptedOpenAI
from test_kill import finish, timeless

from colever.engines.bench import ANSWERS

pytestmark = pytest.mark.slow
STUDY = Path(__file__).with_name("judged_study.py")
KILLS = (0.2, 0.45, 0.7)  # of the answers that the whole study asks for


def name_of(messages: list[dict[str, Any]]) -> str:
    return hashlib.sha256(messages[-1]["content"].encode()).hexdigest()[:12]


class Killer:
    """Names each question in its answer, and kills the process that asks where the number of questions says so."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.asked: list[str] = []
        self.at: int | None = None

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.asked.append(name_of(messages))
        if self.process is not None and self.at is not None and len(self.asked) >= self.at:
            os.kill(self.process.pid, signal.SIGKILL)
        return f"Question {name_of(messages)}. {script(messages)}"


def start(server: ScriptedOpenAI, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(STUDY), str(home), server.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(home: Path) -> set[str]:
    """The questions whose answers lie in the home."""
    with sqlite3.connect(home / ANSWERS) as database:
        rows = [str(row) for row in database.execute("SELECT * FROM answers")]
    return {found[1] for row in rows if (found := re.search(r"Question ([0-9a-f]{12})\.", row))}


def test_a_judged_study_that_is_killed_ends_the_same_and_asks_for_nothing_twice(tmp_path: Path) -> None:
    killer = Killer()
    with ScriptedOpenAI(killer) as server:
        whole = finish(start(server, tmp_path / "whole"))
        every = set(killer.asked)
        assert len(every) == len(killer.asked) > 100
        assert kept(tmp_path / "whole") == every
        before: set[str] = set()
        for share in KILLS:
            killer.asked, killer.at = [], int(share * len(every)) - len(before)
            killer.process = start(server, tmp_path / "killed")
            killer.process.wait(timeout=300)
            assert killer.process.returncode == -signal.SIGKILL, killer.process.communicate()[1][-3000:]
            assert not before & set(killer.asked), "an answer that was kept was asked for again"
            after = kept(tmp_path / "killed")
            assert before < after < every
            before = after
        killer.asked, killer.at = [], None
        again = finish(start(server, tmp_path / "killed"))
    assert timeless(again) == timeless(whole)
    assert set(killer.asked) == every - before
    assert len(killer.asked) == len(every - before)
