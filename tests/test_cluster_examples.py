"""The cluster examples are what a shell, a YAML reader and the command line take."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from colever.cli import app
from colever.stores import VARIABLES

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"
SCRIPT, MANIFEST = FOLDER / "slurm.sh", FOLDER / "kubernetes.yaml"
OURS = {*VARIABLES.values(), "COLEVER_HOME"}


def accepted(arguments: list[str]) -> None:
    """Raises where the command line would not take what follows ``colever``."""
    name, *rest = arguments
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, rest, resilient_parsing=False)


def objects() -> list[Any]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def containers(value: Any) -> Iterator[Any]:
    for job in value:
        if job["kind"] == "Job":
            yield from job["spec"]["template"]["spec"]["containers"]


def test_the_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    assert set(re.findall(r"COLEVER_[A-Z]+", SCRIPT.read_text())) <= OURS


def test_the_script_starts_a_worker_that_the_command_line_takes(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$COLEVER_HOME" "$COLEVER_OBJECTS" "$@"\n')
    srun.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "COLEVER_DATABASE": "postgresql://a@b/c"}
    env |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_TMPDIR": "/scratch"}
    done = subprocess.run(["bash", str(SCRIPT), "my study"], env=env, capture_output=True, text=True, check=True)
    home, shared, colever, *arguments = done.stdout.splitlines()
    assert (home, shared, colever) == ("/scratch/colever-7-3", f"{tmp_path}/colever-objects", "colever")
    assert Path(shared).is_dir()
    assert arguments[:3] == ["worker", "--study", "my study"]
    accepted(arguments)


@pytest.mark.parametrize("missing", ["study", "database"])
def test_the_script_says_what_it_lacks(tmp_path: Path, missing: str) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLEVER_DATABASE": "postgresql://a@b/c"}
    if missing == "database":
        del env["COLEVER_DATABASE"]
    arguments = [] if missing == "study" else ["name"]
    done = subprocess.run(["bash", str(SCRIPT), *arguments], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert ("usage: sbatch slurm.sh STUDY" if missing == "study" else "COLEVER_DATABASE") in done.stderr


def test_the_jobs_commands_are_taken() -> None:
    found = list(containers(objects()))
    assert [container["command"][1] for container in found] == ["worker", "sweep"]
    for container in found:
        assert container["command"][0] == "colever"
        accepted(container["command"][1:])
    names = {container["command"][container["command"].index("--study") + 1] for container in found}
    assert len(names) == 1


def test_the_jobs_find_what_they_refer_to() -> None:
    made = objects()
    names = {(item["kind"], item["metadata"]["name"]) for item in made}
    for container in containers(made):
        referred = [(key[:-3], named["name"]) for ref in container["envFrom"] for key, named in ref.items()]
        assert {(kind[0].upper() + kind[1:], name) for kind, name in referred} <= names
    values = {**made[0]["stringData"], **made[1]["data"]}
    assert {name for name in values if name.startswith("COLEVER_")} == OURS
    assert not any(name in made[1]["data"] for name in made[0]["stringData"])
    workers = next(item["spec"] for item in made if item["metadata"]["name"] == "colever-workers")
    assert workers["completionMode"] == "Indexed"
    assert workers["template"]["spec"]["restartPolicy"] == "Never"  # backoffLimitPerIndex asks for it


def test_commands_in_the_comments_are_taken() -> None:
    for line in SCRIPT.read_text(encoding="utf-8").splitlines():
        for command in re.findall(r"`colever ([^`]+)`", line):
            accepted(shlex.split(command))
