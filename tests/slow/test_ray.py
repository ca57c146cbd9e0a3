"""A study's workers on a real Ray cluster of several nodes on this machine; one is killed with its worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_kill import timeless

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LEAST = 80 * 2**20  # bytes of a node's object store
STUDY = (
    "sweep examples/last_word.py:task --study words --trials 2 --json --set schedules=[p,w] --set weights.updates=6 "
    "--set weights.examples_per_update=8 --set weights.group_size=4 --set prompt.candidates=2 --set prompt.screen=8 "
    "--set prompt.examples=16"
).split()
CALL = "import sys; sys.argv[0] = 'colever'; from colever.cli import main; main()"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": LEAST})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=LEAST)
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        yield made
    finally:
        made.shutdown()


def start(home: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CALL, *STUDY, "--home", str(home), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finished(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out[out.index("{") :])


def rounds(home: Path) -> list[str]:
    return sorted(path.parent.name for path in home.glob("rounds/*/record.json"))


def pulled(home: Path) -> bool:
    """Whether a weight round is under way."""
    return any(home.glob("rounds/*.part/*"))


def test_a_node_that_is_killed_leaves_the_table_as_it_is(cluster: Any, tmp_path: Path) -> None:
    whole = finished(start(tmp_path / "alone"))
    home = tmp_path / "on-ray"
    process = start(home, "--workers", "2", "--on", "ray")
    while not pulled(home) and process.poll() is None:
        time.sleep(0.2)
    killed = cluster.list_all_nodes()[-1]
    cluster.remove_node(killed, allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=LEAST)
    report = finished(process)
    assert timeless(report["arms"]) == timeless(whole["arms"])
    assert timeless(report["table"]) == timeless(whole["table"])
    assert rounds(home) == rounds(tmp_path / "alone")


def test_an_interrupt_ends_the_workers_and_the_same_command_goes_on(cluster: Any, tmp_path: Path) -> None:
    process = start(tmp_path, "--workers", "2", "--on", "ray")
    while not pulled(tmp_path) and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err[-3000:]
    assert "the same command continues" in err
    report = finished(start(tmp_path, "--workers", "2", "--on", "ray"))
    assert [arm["schedule"] for arm in report["arms"]] == ["p", "w"]


def test_no_cluster_at_an_address_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for address in ("ray", "ray://127.0.0.1:9"):
        done = start(tmp_path, "--on", address)
        _, err = done.communicate(timeout=120)
        assert done.returncode == 1
        assert "no Ray cluster at" in err.splitlines()[-1]
        assert "127.0.0.1:9" in err.splitlines()[-1]
