"""Workers on Ray, as flags: what is accepted, what a worker needs, which machines may share a study. No cluster."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colever.errors import UsageError
from colever.loading import load_config
from colever.process import machine
from colever.ray_workers import Job, RayWorkers, _needed, _shared_with, placed, run_on_ray
from colever.stores import Stores


def test_workers_are_processes_unless_they_are_placed() -> None:
    assert placed(3, None, None) == 3
    assert placed(3, "ray", None) == RayWorkers(3)
    assert placed(3, "ray://head:10001", ["gpus=0.5", "cpus=2", "big=1"]) == RayWorkers(
        3, "ray://head:10001", {"gpus": 0.5, "cpus": 2.0, "big": 1.0}
    )


@pytest.mark.parametrize(
    ("on", "needs", "said"),
    [
        ("slurm", None, "--on 'slurm': accepted: ray"),
        ("ray://", None, "accepted: ray"),
        (None, ["gpus=1"], "accepted with --on ray"),
        ("ray", ["gpus=many"], "--needs gpus=many: accepted: a number"),
        ("ray", ["gpus=-1"], "accepted: a number"),
        ("ray", ["gpus"], "accepted: KEY=VALUE"),
    ],
)
def test_what_is_no_placement_is_refused(on: str | None, needs: list[str] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        placed(2, on, needs)


def test_without_ray_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="Ray is not installed; accepted: pip install"):
        run_on_ray(load_config(flags={"task": "toy"}), tmp_path, RayWorkers(2))


def cluster(*gpus: float) -> Any:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0} | ({"GPU": of} if of else {})} for of in gpus]
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("model", "device", "gpus", "needed"),
    [
        ("Qwen/Qwen3-0.6B", "auto", (0, 4), 1),
        ("Qwen/Qwen3-0.6B", "auto", (0, 0), 0),
        ("Qwen/Qwen3-0.6B", "cpu", (4,), 0),
        ("Qwen/Qwen3-0.6B", "cuda", (0,), 1),
        ("seed", "auto", (4,), 0),
        ("api:openai/gpt-5-mini", "auto", (4,), 0),
    ],
)
def test_a_worker_takes_a_gpu_where_its_model_uses_one(
    model: str, device: str, gpus: tuple[float, ...], needed: float
) -> None:
    config = load_config(flags={"task": "toy", "model": model}, overrides={"engine.device": device})
    assert _needed(config, {}, cluster(*gpus)) == {"cpus": 1.0, "gpus": needed}
    assert _needed(config, {"gpus": 0.25, "cpus": 2.0}, cluster(*gpus)) == {"cpus": 2.0, "gpus": 0.25}


def test_what_no_node_has_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(flags={"task": "toy"})
    _needed(config, {}, cluster(0))
    assert capsys.readouterr().err == ""
    _needed(config, {"gpus": 2.0}, cluster(0, 1))
    assert "no node of the Ray cluster has cpus=1.0, gpus=2.0 now" in capsys.readouterr().err


def test_machines_that_do_not_share_a_study_are_refused(tmp_path: Path) -> None:
    job = Job({}, str(tmp_path), Stores(), str(tmp_path), machine(), "token")
    _shared_with(job)
    elsewhere = replace(job, machine="elsewhere")
    with pytest.raises(UsageError, match="give one with --database"):
        _shared_with(elsewhere)
    database = replace(elsewhere, stores=Stores(database="postgresql+psycopg://ann@host/colever"))
    with pytest.raises(UsageError, match="does not see --home"):
        _shared_with(database)
    _shared_with(replace(database, stores=replace(database.stores, objects="s3://bucket")))
    (tmp_path / "token").touch()
    _shared_with(database)
    with pytest.raises(UsageError, match=r"accepted: 0\.0\.1, as here"):
        _shared_with(replace(job, version="0.0.1"))
