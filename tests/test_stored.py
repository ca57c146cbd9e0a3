"""A study's task found again from another folder, and what is said where it is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
TASK = """
import dspy
from colever import Criterion, Rubric, Task

def same(e, p, s):
    return p.answer == e.answer

def task(data=None):
    from colever.tasks.data import Source, read_splits
    make = lambda row: dspy.Example(question=row["question"], answer=row["answer"]).with_inputs("question")
    train, dev, test, _ = read_splits(Source("none", ("question", "answer")), data, (6, 4, 4), make, seed=0)
    return Task("echo", lambda: dspy.Predict("question -> answer"), train, dev, test, Rubric([Criterion("same", same)]),
                max_tokens=4)
"""
RUBRIC = '[[criterion]]\nname = "answer"\nkind = "exact"\nfield = "answer"\n'
SMALL = ["--schedule", "p", "--set", "prompt.candidates=1", "--set", "prompt.demos=1"]


@pytest.fixture
def project(tmp_path: Path, run: Run, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that was made in this folder by paths relative to it; the tests stand in another one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_task.py").write_text(TASK)
    (folder / "strict.toml").write_text(RUBRIC)
    (folder / "rows.csv").write_text("question,answer\n" + "".join(f"{i},{i}\n" for i in range(14)))
    monkeypatch.chdir(folder)
    told = ["my_task.py:task", "--data", "rows.csv", "--rubric", "strict.toml", "--study", "mine"]
    status, _, err = run("optimize", *told, *SMALL, "--model", tiny_checkpoint, "--home", tmp_path / "home")
    assert status == 0, err
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return folder


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_it_is_scored_and_made_again_from_another_folder(project: Path, run: Run) -> None:
    home = project.parent / "home"
    config = (home / "studies" / "mine" / "config.yaml").read_text()
    assert "rubric: strict.toml" in config  # as it was spelled
    status, out, err = run("rescore", "mine", "base", "--home", "../home", "--json")
    assert (status, json.loads(out)["kept"] if out else err) == (0, 4)
    status, out, err = run("rerun", "mine", "--home", "../home", "--json")
    assert (status, json.loads(out)["same"] if out else err) == (0, True)
    assert Path.cwd() == project.parent / "other"
    assert (home / "reruns" / "studies" / "mine" / "config.yaml").read_text() == config
    (Path.cwd() / "mine.toml").write_text(RUBRIC.replace('"answer"\nkind', '"renamed"\nkind'))
    status, out, err = run("rescore", "mine", "base", "--home", "../home", "--rubric", "mine.toml", "--json")
    assert (status, json.loads(out)["criteria"] if out else err) == (0, ["renamed"])


def test_what_is_not_found_is_said_of_the_record_and_not_of_a_flag(project: Path, run: Run) -> None:
    home = project.parent / "home"
    os.remove(project / "rows.csv")
    for command, file in (("rescore", "config.yaml"), ("rerun", "manifest.json")):
        status, _, err = run(command, "mine", "--home", home)
        said = one_line(err)
        assert status == 2
        assert f"{home / 'studies' / 'mine' / file}: " in said
        assert "data: rows.csv: no such file; accepted: a file (.jsonl" in said
        assert f"data: rows.csv: not found from this folder, nor in {project}, where it was made; accepted: a" in said
        assert "--data" not in said
    shutil.copytree(project, project.parent / "moved")
    shutil.rmtree(project)
    status, _, err = run("rescore", "mine", "--home", home)
    assert status == 2
    assert "config.yaml: task file 'my_task.py' does not exist" in one_line(err)
    assert "task: my_task.py:task, data: rows.csv, rubric: strict.toml: not found from this folder" in one_line(err)


def test_what_is_here_comes_before_what_lies_where_it_was_made(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project that was moved with its studies, and whose old folder is still there, is read where it is now."""
    moved = project.parent / "moved"
    shutil.copytree(project, moved)
    (moved / "strict.toml").write_text(RUBRIC.replace('"answer"\nkind', '"moved"\nkind'))
    monkeypatch.chdir(moved)
    status, out, err = run("rescore", "mine", "base", "--home", "../home", "--json")
    assert (status, json.loads(out)["criteria"] if out else err) == (0, ["moved"])
