"""A study of an agent through the command's own path, its bundle, and the program that is made of that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import colever
from colever.config import SweepConfig
from colever.errors import TaskError
from colever.ship.export import export
from colever.ship.running import Running
from colever.ship.server import make_app
from colever.studies import run_study
from colever.tracking import store

EXAMPLE = Path(__file__).parent.parent / "examples" / "plain_agent.py"
SMALLER = """
from dataclasses import replace
from plain_agent import task as whole

task = replace(whole, train=whole.train[:16], dev=whole.dev[:8], test=whole.test[:12])
"""


@pytest.fixture(scope="module")
def bundle(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one round of weights on a smaller example left behind, elsewhere."""
    home = tmp_path_factory.mktemp("agent-study")
    shutil.copy(store.database(empty_home), home / "mlflow.db")
    shutil.copy(EXAMPLE, home / "plain_agent.py")
    (home / "smaller.py").write_text(SMALLER)
    how = {"updates": 2, "examples_per_update": 4, "group_size": 4, "learning_rate": 1e-3}
    config = SweepConfig(
        task=f"{home / 'smaller.py'}:task", study="agent", trials=1, schedules=("w",), weights=how, elsewhere=()
    )
    run_study(config, home)
    export(home, "agent:0.1", home / "out")
    return (home / "out").rename(tmp_path_factory.mktemp("moved") / "agent")


def test_a_bundle_answers_as_the_agent_did(bundle: Path) -> None:
    said = json.loads((bundle / "manifest.json").read_text())
    assert {"task_code/smaller.py", "task_code/plain_agent.py"} <= set(said["files"])
    program = colever.load(bundle, trust_code=True)
    scores = program.evaluate("test").scores
    called = [program.task.score(e, program(**e.inputs()), ()).total for _, e in program.task.examples("test")]
    assert called == list(scores)


def test_it_is_served(bundle: Path) -> None:
    question = colever.load(bundle, trust_code=True).task.test[0].question
    with TestClient(make_app(Running(bundle, trust_code=True, say=lambda text: None))) as client:
        made = client.post("/predict", json={"question": question}).json()
    assert set(made["outputs"]) == {"answer", "notes"}
    assert made["usage"]["completion_tokens"] > 0


def test_code_of_others_is_not_run(bundle: Path) -> None:
    with pytest.raises(TaskError, match="brings its own task file"):
        colever.load(bundle)
