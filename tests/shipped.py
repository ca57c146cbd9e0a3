"""Bundles for tests: one written by hand, and studies of a few real updates on the seed model to export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colever.config import SweepConfig
from colever.ship.guarded import sha256_of
from colever.ship.layout import FORMAT, Manifest, ModelReference, TaskReference, WeightsReference
from colever.ship.written import write_manifest, write_program
from colever.types import Candidate, PredictorPrompt

CANDIDATE = Candidate({"solve": PredictorPrompt("Solve it."), "check": PredictorPrompt("Check it.")})
SMALL = {"updates": 3, "examples_per_update": 8, "group_size": 8, "learning_rate": 3e-3}


def write_bundle(
    folder: Path,
    *,
    task: str = "arithmetic",
    model: str = "seed",
    candidate: Candidate = CANDIDATE,
    weights: WeightsReference | None = None,
    inputs: tuple[str, ...] = ("problem",),
) -> Path:
    """A bundle of prompts alone; files that are there already (weights, code) are in its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_program(candidate, folder)
    write_manifest(
        folder,
        Manifest(
            format=FORMAT, study="by-hand", which="winner", candidate=candidate.digest,
            task=TaskReference(name=task, inputs=list(inputs)), model=ModelReference(name=model),
            weights=weights or WeightsReference(), files={},
        ),
    )  # fmt: skip
    return folder


def change_manifest(folder: Path, **changes: Any) -> None:
    """Other values at dotted places (``task__name``) of the manifest; its files are listed as they are now."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    for path in [p for p in folder.rglob("*") if p.is_file() and p != file]:
        name = path.relative_to(folder).as_posix()
        data["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    for dotted, value in changes.items():
        *above, last = dotted.split("__")
        inner = data
        for part in above:
            inner = inner[part]
        inner[last] = value
    file.write_text(json.dumps(data))


SUMS = """
from dataclasses import replace
from colever.tasks.arithmetic import task as whole

task = replace(whole, train=whole.train[:48], dev=whole.dev[:16], test=whole.test[:24], watched={})
"""


def sum_task(folder: Path) -> str:
    """A task file of the user's own, on which a few updates of the seed model show."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small_sums.py").write_text(SUMS)
    return f"{folder / 'small_sums.py'}:task"


def run_sum_study(home: Path, task: str, name: str, weights: Mapping[str, Any]) -> None:
    """One trial of a few updates, with everything that a study leaves behind."""
    from colever.studies import run_study

    config = SweepConfig(task=task, study=name, trials=1, schedules=("w",), weights={**SMALL, **weights})
    run_study(config, home)
