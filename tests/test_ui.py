"""The UI's address and port; the server itself runs in tests/slow."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from colever.errors import UsageError
from colever.tracking import store, ui
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.tracking.view import study_views


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker(home)
    for study, task in (("a-1", "a"), ("b-1", "b"), ("a-2", "a")):
        tracker.study_started(study, task, "seed", {}, "1 trial")
        tracker.study_stopped("done")
    return home


@pytest.mark.parametrize(
    ("asked", "study"),
    [(None, "a-2"), ("a", "a-2"), ("b", "b-1"), ("a-1", "a-1")],
    ids=["latest", "task", "b", "study"],
)
def test_deep_link_opens_the_study_asked_for(home: Path, asked: str | None, study: str) -> None:
    link = ui.deep_link(home, asked)
    assert study_views(study, "gold")[0].identifier in link
    assert link.startswith("#/experiments/")
    assert "workflowType=machine_learning" in link


def test_a_home_without_a_study_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    for study in (None, "a"):
        with pytest.raises(UsageError, match=r"no study was run in .*typo: there is no mlflow\.db; accepted: the"):
            ui.deep_link(tmp_path / "typo", study)
    assert not (tmp_path / "typo").exists()


def test_without_a_study_yet_it_opens_at_the_experiments(tmp_path: Path) -> None:
    store.open_client(tmp_path)
    assert ui.deep_link(tmp_path) == "#/experiments"


def test_unknown_study_is_named_with_the_known_ones(home: Path) -> None:
    with pytest.raises(UsageError, match=r"'c'.*a-1, a-2, b-1"):
        ui.deep_link(home, "c")


def test_port_in_use_is_named(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port} on 127.0.0.1: Address already in use"):
            ui.serve(home, port=port, open_browser=False)


def test_port_out_of_range_is_named(home: Path) -> None:
    with pytest.raises(UsageError, match="1 to 65535"):
        ui.serve(home, port=99999, open_browser=False)
