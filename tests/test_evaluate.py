"""Evaluation through the whole path: real program, rollouts and rubric on an engine that answers by rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy import GOOD, ToyEngine, toy_task

from colever.errors import BudgetExhausted, TaskError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import Evaluator, evaluate, metered, summarize
from colever.optimizers.store import EvaluationStore
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Candidate, Completion, Cost, Evaluation, PredictorPrompt, Rollout, Score, Step


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


def test_each_predictors_prompt_is_measured_whole_and_its_calls_are_counted() -> None:
    def rollout(name: str, calls: list[tuple[str, int]], failure: str | None = None) -> Rollout:
        steps = tuple(
            Step(predictor, 0, Completion("", (1,) * read, (2, 3), (0.0, 0.0), "stop", "v"))
            for predictor, read in calls
        )
        score = None if failure == "infrastructure" else Score(1.0, {"right": 1.0})
        return Rollout(name, 0, steps, score, {}, failure)  # type: ignore[arg-type]

    found = summarize(
        [
            rollout("1", [("act", 100), ("act", 200), ("say", 30)]),
            rollout("2", [("act", 300), ("say", 50)]),
            rollout("3", [("act", 200)], "infrastructure"),
        ],
        "dev",
        Cost(),
    )
    assert found.prompt_tokens == {"act": 200, "say": 40}
    assert found.calls == {"act": 1.5, "say": 1}, "a rollout that the machinery ended has no whole number of calls"
    assert Evaluation.from_json(found.to_json()) == found
    assert summarize([rollout("1", [("act", 0)])], "dev", Cost()).prompt_tokens == {}, "a model that does not say"


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


@pytest.mark.parametrize(("asked", "rollouts"), [(2, 5), (0, 0)])
def test_a_batch_that_breaks_is_charged_what_it_asked(asked: int, rollouts: int) -> None:
    budget, engine = Budget(), ToyEngine()

    def breaking() -> None:
        with metered(engine, 5, budget):  # type: ignore[arg-type]
            engine.calls += asked
            raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        breaking()
    assert (budget.spent.rollouts, budget.spent.prompt_tokens) == (rollouts, 10 * asked)
