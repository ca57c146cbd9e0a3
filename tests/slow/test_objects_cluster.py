"""Machines that share a database, an MLflow server and objects, and no folder: each home is its own, one is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_cluster import Cluster, alone, cluster, in_a_round, servers, until
from test_kill import finish, start, timeless
from test_workers_kill import arms_of, end, started_rounds

from colever.optimizers.attribution import report_of
from colever.optimizers.comparison import compare
from colever.optimizers.study import find_study
from colever.tracking.report_json import to_json

pytestmark = pytest.mark.slow
__all__ = ["alone", "cluster", "servers"]  # fixtures


@pytest.fixture
def shared(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Objects in a folder."""
    folder = tmp_path / "objects"
    folder.mkdir()
    monkeypatch.setenv("COLEVER_OBJECTS", str(folder))
    return folder


def test_homes_of_their_own_end_with_the_table_of_one(
    cluster: Cluster, alone: tuple[Path, Any], shared: Path, tmp_path: Path
) -> None:
    homes = [tmp_path / f"machine-{place}" for place in range(3)]
    workers = [start(home) for home in homes]
    until(lambda: in_a_round(homes[0]) or in_a_round(homes[1]) or in_a_round(homes[2]), *workers)
    lost = next(place for place, home in enumerate(homes) if in_a_round(home))
    end(workers.pop(lost))
    reports = [finish(worker) for worker in workers]
    for report in reports:
        assert arms_of(report) == arms_of(alone[1])
    assert timeless(reports[0]) == timeless(reports[1])
    cluster.assert_runs_are_whole()
    assert {path.name for path in (shared / "rounds").iterdir()} >= set(started_rounds(alone[0]))
    empty = tmp_path / "empty"
    assert timeless(to_json(report_of(find_study(empty, "toy"))))["arms"] == timeless(reports[0])["arms"]
    assert len(compare(empty, [])) == 1
