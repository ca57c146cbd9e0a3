"""A study whose rubric asks a judge, as a process of its own, to be killed: python judged_study.py HOME ADDRESS."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[1]))

# ruff: noqa: E402 - the folder of tests must be on the path first
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, right, toy_task

from colever.loading import load_config
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.sweep import sweep
from colever.tasks.criteria.judge import Judge
from colever.tasks.rubric import Criterion, Rubric
from colever.tracking.report_json import to_json

home, address = Path(sys.argv[1]), sys.argv[2]
small = {"prompt.candidates": 2, "prompt.demos": 2, "prompt.screen": 8, "prompt.examples": 12, "prompt.finalists": 1}
flags = {"task": "toy", "model": "toy", "trials": 3, "schedules": ["p", "w", "p,w"], "elsewhere": []}
judge = Judge(question="Is it right?", models=(f"scripted@{address}",))
report = sweep(
    load_config(flags=flags, overrides=small | {"judge.retry_wait": 0.01}),
    toy_task(rubric=Rubric([Criterion("quality", judge), Criterion("right", right, 0)]), watched={}),
    ToyEngine(), home,
    levers=lambda p, w: {"prompt": PromptLever(p), "weights": ToyWeightLever(ToyWeightSettings())},
)  # fmt: skip
print(json.dumps(to_json(report)))
