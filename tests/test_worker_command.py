"""``colever worker``: waits for a study, works along from another folder by its own settings, and ends by SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from colever.errors import StoreError
from colever.leases import Leases
from colever.locks import locks_of
from colever.studies import ended_by_sigterm
from colever.tracking import store, ui
from colever.tracking.server import await_server

Run = Callable[..., tuple[int, str, str]]
TASK = """
import dspy
from colever import Criterion, Rubric, Task

def rows(first, count):
    return [dspy.Example(question=str(i), answer=str(i)).with_inputs("question") for i in range(first, first + count)]

def same(e, p, s):
    return p.answer == e.answer

task = Task("echo", lambda: dspy.Predict("question -> answer"), rows(0, 6), rows(10, 4), rows(20, 4),
            Rubric([Criterion("same", same)]), max_tokens=4)
"""
SMALL = ["--set", "prompt.candidates=1", "--set", "prompt.screen=2", "--set", "prompt.examples=2"]


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stores from outside, and none that a command here has named after it."""
    for name in ("DATABASE", "MLFLOW", "OBJECTS"):
        monkeypatch.setenv(f"COLEVER_{name}", "")


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_study_that_is_not_begun_is_named_after_the_wait(run: Run, tmp_path: Path) -> None:
    status, _, err = run("worker", "--study", "mine", "--home", tmp_path, "--wait", "0")
    assert status == 2
    assert "--study 'mine': there is none in" in one_line(err)
    assert "colever sweep TASK --study mine" in one_line(err)


def test_a_worker_goes_on_with_a_study_from_another_folder(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    (folder / "my_task.py").write_text(TASK)
    monkeypatch.chdir(folder)
    more = ["--study", "mine", "--model", tiny_checkpoint, "--home", home, "--set", "schedules=[p]"]
    assert run("sweep", "my_task.py:task", "--trials", "1", *more, *SMALL)[0] == 0
    table = json.loads((home / "studies" / "mine" / "report.json").read_text())["table"]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    status, _, err = run("worker", "--study", "mine", "--home", home)
    assert status == 0
    assert "study mine is finished: colever report mine" in one_line(err)
    for left in ("study.json", "report.json"):
        file = home / "studies" / "mine" / left
        if left == "report.json":
            file.unlink()
        else:  # as one that was killed before the report leaves it
            made = json.loads(file.read_text())["value"]
            from colever.optimizers.store import write_sealed

            write_sealed(file, made | {"finished": False})
    status, _, err = run("worker", "--study", "mine", "--home", "../home")
    assert status == 0, err
    assert "gold on test" in one_line(err) or "on test" in one_line(err)
    assert json.loads((home / "studies" / "mine" / "report.json").read_text())["table"] == table


def test_a_password_in_a_flag_is_refused_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    for command in (["sweep", "arithmetic"], ["worker", "--study", "mine"]):
        home = tmp_path / command[0]
        status, _, err = run(*command, "--database", "postgresql://ann:s3cret@host/x", "--home", home)
        assert status == 2
        assert "accepted for it: PGPASSWORD" in one_line(err)
        assert "s3cret" not in err
        assert not home.exists()


def test_a_tracking_server_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_MLFLOW", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer \(.*refused.*rounds are stored"):
        store.open_client(tmp_path, wait=0.0)
    with pytest.raises(StoreError, match="does not answer"):
        await_server("http://127.0.0.1:9", 0.0)


def test_the_ui_of_a_server_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "deep_link", lambda home, name: f"#/{name}")
    monkeypatch.setenv("COLEVER_MLFLOW", "http://tracking:5000/")
    told: list[str] = []
    assert ui.serve(tmp_path, open_browser=False, study_or_task="mine", announce=told.append) == told[0]
    assert told == ["http://tracking:5000/#/mine"]


def test_sigterm_gives_back_what_is_held_and_says_so_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path / 'locks.db'}")
    locks, before = locks_of(tmp_path), signal.getsignal(signal.SIGTERM)
    assert isinstance(locks, Leases)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    with pytest.raises(typer.Exit) as ended, ended_by_sigterm(), locks.lock("trial-3"):
        work()
    assert ended.value.exit_code == 143
    assert locks.held("") == []
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
