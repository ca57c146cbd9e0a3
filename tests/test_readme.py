"""What the README and the examples say is true: the map, the example, the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--set", "weights.updates=2", "--set", "weights.examples_per_update=4", "--set", "weights.group_size=4",
         "--set", "prompt.candidates=2", "--set", "prompt.screen=8", "--set", "prompt.examples=16"]  # fmt: skip


def colever(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "colever"), *arguments]
    env = {**os.environ, "COLEVER_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=env)


def test_the_map_is_the_tree() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: nothing to compare the map with")
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    section = README.split("## The map")[1]
    assert {name.rstrip("/") for name in re.findall(r"`([a-z]+/)`", section)} == folders


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_example_in_the_readme_is_the_file() -> None:
    example = (ROOT / "examples" / "last_word.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in README
    assert len(example.splitlines()) <= 40


def test_every_command_is_in_the_readme_and_has_an_example() -> None:
    from typer.main import get_command

    from colever.cli import app

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"`colever {name}" in README, name
        if not hasattr(command, "commands"):
            assert "Example: colever" in (command.epilog or ""), name


def test_a_users_task_file_runs_through_both_levers(tmp_path) -> None:
    done = colever("eval", "examples/last_word.py:task", "--limit", "16", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"score", "gold"} <= set(json.loads(done.stdout))
    done = colever("sweep", "examples/last_word.py:task", "--json", *SMALL, home=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"task", "model", "target", "table", "effects", "thresholds", "arms"} <= set(report)
    assert {arm["schedule"] for arm in report["arms"]} == {"p", "w", "p,w", "w,p"}
    assert set(report["table"]) == {"base", "prompt", "weights", "both"}
    again = colever("report", report["study"], "--json", home=tmp_path)
    assert json.loads(again.stdout)["table"] == report["table"]


def test_eval_task_unknown_exits_with_two(tmp_path) -> None:
    done = colever("eval", "arithmetik", home=tmp_path)
    assert done.returncode == 2
    assert "accepted: arithmetic, lookup, routing" in " ".join(done.stderr.split())
