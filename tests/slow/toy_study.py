"""A study on hand-written parts as a process of its own, to be killed: python toy_study.py HOME SECONDS_PER_UPDATE."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[1]))

# ruff: noqa: E402 - the folder of tests must be on the path first
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.loading import load_config
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.sweep import sweep
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.tracking.report_json import to_json

home, pause = Path(sys.argv[1]), float(sys.argv[2])
small = {"prompt.candidates": 2, "prompt.screen": 8, "prompt.examples": 16, "prompt.demos": 2}
flags = {"task": "toy", "model": "toy", "trials": 6, "schedules": ["p", "w", "p,w", "adaptive"]}
config = load_config(flags=flags, overrides=small)


def update() -> None:
    """Takes its time, and a line of a file that says how many were made."""
    time.sleep(pause)
    with (home / "updates.log").open("a") as file:
        file.write(".\n")


report = sweep(
    config, toy_task(), ToyEngine(), home, tracker=MlflowTracker(home),
    levers=lambda p, w: {
        "prompt": PromptLever(p),
        "weights": ToyWeightLever(ToyWeightSettings(updates=6), update),
    },
)  # fmt: skip
print(json.dumps(to_json(report)))
