"""Evaluation through the whole path: real program, rollouts and rubric on an engine that answers by rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy import GOOD, ToyEngine, toy_task

from colever.errors import BudgetExhausted, TaskError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import Evaluator, evaluate
from colever.optimizers.store import EvaluationStore
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Candidate, PredictorPrompt


def test_a_better_wording_scores_higher_and_costs_are_counted() -> None:
    task, engine = toy_task(), ToyEngine()
    base = evaluate(task.base_candidate(), task, engine)
    good = evaluate(Candidate({"solve": PredictorPrompt(GOOD)}), task, engine)
    assert 0.2 < base.score < good.score < 0.9
    assert base.gold is not None
    assert base.example_ids == tuple(i for i, _ in task.examples("dev"))
    assert (base.cost.rollouts, base.cost.prompt_tokens) == (60, 600)
    assert base.infrastructure_failures == 0


def test_a_split_is_part_of_the_key_and_nothing_is_run_twice(tmp_path: Path) -> None:
    task, engine = toy_task(), ToyEngine()
    evaluator = Evaluator.of(task, engine, EvaluationStore(tmp_path), 0)
    candidate = task.base_candidate()
    dev = evaluator(candidate)
    calls = engine.calls
    assert evaluator(candidate) == dev
    assert engine.calls == calls
    assert evaluator(candidate, "test") != dev
    keys = {
        evaluator.grounds.evaluation_key(candidate, "dev", 0),
        evaluator.grounds.evaluation_key(candidate, "train", 0),
        evaluator.grounds.evaluation_key(candidate, "dev", 1),
        replace(evaluator.grounds, task="another").evaluation_key(candidate, "dev", 0),
        replace(evaluator.grounds, engine="another").evaluation_key(candidate, "dev", 0),
    }
    assert len(keys) == 5


def test_a_stored_evaluation_is_charged_like_a_run_one(tmp_path: Path) -> None:
    task = toy_task()
    evaluator = Evaluator.of(task, ToyEngine(), EvaluationStore(tmp_path), 0)
    first, second = Budget(), Budget()
    evaluator(task.base_candidate(), budget=first)
    evaluator(task.base_candidate(), budget=second)
    assert first.spent == second.spent != Budget().spent
    with pytest.raises(BudgetExhausted):
        evaluator(task.base_candidate(), budget=Budget({"rollouts": 59}))


def test_a_cap_stops_before_the_batch() -> None:
    task, engine = toy_task(), ToyEngine()
    with pytest.raises(BudgetExhausted):
        evaluate(task.base_candidate(), task, engine, budget=Budget({"rollouts": 59}))
    assert engine.calls == 0


@pytest.mark.parametrize(("check", "said"), [(lambda e, p, s: 2.0, "returned 2.0"), (lambda e, p, s: 1 / 0, "raised")])
def test_a_criterion_that_fails_stops_the_evaluation(check: object, said: str) -> None:
    task = toy_task(rubric=Rubric([Criterion("odd", check)]))  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=said):
        evaluate(task.base_candidate(), task, ToyEngine())
