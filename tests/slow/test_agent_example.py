"""The bundled agent on the openai client, trained on the seed model: a small pull of weights goes far."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import NullProgress
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.load import load_task

EXAMPLE = f"{Path(__file__).parents[2] / 'examples' / 'plain_agent.py'}:task"


@pytest.mark.slow
def test_a_few_updates_teach_the_agent(tmp_path: Path) -> None:
    engine, task = open_engine("seed"), load_task(EXAMPLE)
    task = dataclasses.replace(task, dev=task.dev[:48])
    base = task.base_candidate()
    before = evaluate(base, task, engine).score
    lever = WeightLever(WeightSettings(updates=8, examples_per_update=6, group_size=8, learning_rate=4e-4))
    made = lever.improve(base, task, engine, Budget(), 0, tmp_path, NullProgress())
    assert "drifted_calls" not in made.metrics
    assert max(gap for _, gap in made.metrics["logprob_gap"]) < 1e-4
    assert evaluate(made.candidate, task, engine).score > before + 0.1
