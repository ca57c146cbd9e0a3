"""What made a study, so that it can be made again: command, settings, digests, versions, commit, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from colever.config import SweepConfig
from colever.optimizers.evaluate import Grounds
from colever.tasks.rubric_data import rubric_data
from colever.tasks.task import Task

# Of a report: what no two runs share (the machine's time and its price), and what only one of them may have.
TIMES = {"seconds", "dollars", "expected"}


def manifest(config: SweepConfig, grounds: Grounds, task: Task) -> dict[str, Any]:
    """As JSON. ``commit`` is the working folder's, null outside of git; ``changed``: it was not clean.

    ``origin`` says where the task's rows are from, ``inputs`` which fields its program takes.
    """
    import torch

    commit = _git("rev-parse", "HEAD")
    return {
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "config": config.model_dump(mode="json"),
        "task": grounds.task,
        "origin": task.origin,
        "inputs": list(task.examples("train")[0][1].inputs().keys()),
        "rubric": rubric_data(task.rubric, config.rubric).to_json(),
        "engine": grounds.engine,
        "versions": dict(grounds.versions) | {name: version(name) for name in ("optuna", "mlflow")},
        "folder": os.getcwd(),
        "commit": commit,
        "changed": bool(commit and _git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def unlike(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two reports' JSON differ, times left aside: ``table.both.gold: 0.98, now 0.97``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in dict.fromkeys([*old, *new]) if key not in TIMES]
        return [d for key in keys for d in unlike(old.get(key), new.get(key), f"{place}.{key}" if place else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in unlike(a, b, f"{place}[{i}]")]
    return [] if old == new else [f"{place}: {_short(old)}, now {_short(new)}"]


def changes(old: dict[str, Any], grounds: Grounds) -> list[str]:
    """What is no longer as it was when the study was made: task, engine, versions."""
    now = asdict(grounds)
    found = [f"the {name} is another" for name in ("task", "engine") if old[name] != now[name]]
    return found + [f"{n} was {old['versions'].get(n)}, is {v}" for n, v in now["versions"].items()
                    if old["versions"].get(n) != v]  # fmt: skip


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"
