"""The prompt lever: finds the wording and the demos that help, reads train and the rubric only, and is repeatable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from conformance import LeverConformance
from toy import GOOD, ToyEngine, right, toy_task

from colever.config import PromptSettings
from colever.errors import BudgetExhausted
from colever.optimizers.budget import Budget
from colever.optimizers.demos import draw, labelled_demos
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.prompt_lever import PromptLever
from colever.tasks.task import Task
from colever.types import Candidate

SETTINGS = PromptSettings(candidates=4, demos=4, screen=12, examples=36)


def improve(
    tmp_path: Path, settings: PromptSettings = SETTINGS, seed: int = 0, budget: Budget | None = None, **task: Any
) -> Pull:
    made = toy_task(**task)
    return PromptLever(settings).improve(
        made.base_candidate(), made, ToyEngine(), budget or Budget(), seed, tmp_path, NullProgress()
    )


class TestPromptLever(LeverConformance):
    @pytest.fixture
    def engine(self) -> ToyEngine:
        return ToyEngine()

    def lever(self) -> PromptLever:
        return PromptLever(SETTINGS)

    def task(self, **changes: Any) -> Task:
        return toy_task(**changes)


def test_it_finds_the_wording_that_helps(tmp_path: Path) -> None:
    pull = improve(tmp_path, PromptSettings(candidates=0, demos=0, screen=30, examples=36))
    assert pull.candidate.prompts["solve"].instructions == GOOD
    assert [row["what"] for row in pull.notes["tried"]] == [
        "as it was",
        "solve: wording 1",
        "solve: wording 2",
    ]  # together: the same again


def test_demos_are_examples_that_are_not_scored(tmp_path: Path) -> None:
    asked: list[str] = []
    program = toy_task().program

    class Asked(program):  # type: ignore[misc,valid-type]
        def forward(self, question: str) -> dspy.Prediction:
            asked.append(question)
            return super().forward(question=question)

    pull = improve(tmp_path, program=Asked, instructions={})
    demos = pull.candidate.prompts["solve"].demos
    assert len(demos) == SETTINGS.demos
    assert all(set(d) == {"question", "answer"} for d in demos)
    finals = asked[-36:]
    assert not set(finals) & {d["question"] for d in demos}
    assert Candidate.from_json(json.loads(json.dumps(pull.candidate.to_json()))).digest == pull.candidate.digest


def test_bootstrapped_demos_are_right_answers(tmp_path: Path) -> None:
    class Hidden(dspy.Module):
        """Its predictor's output field is no field of the examples, so demos can only be bootstrapped."""

        def __init__(self) -> None:
            super().__init__()
            self.solve = dspy.Predict(dspy.Signature("problem -> answer", "Solve it."))

        def forward(self, question: str) -> dspy.Prediction:
            return self.solve(problem=question)

    pull = improve(tmp_path, program=Hidden, instructions={})
    demos = pull.candidate.prompts["solve"].demos
    assert demos
    for demo in demos:
        a, b = map(int, demo["problem"].split(" + "))
        assert demo["answer"] == str(a + b)


def test_the_same_seed_makes_the_same_child(tmp_path: Path) -> None:
    assert improve(tmp_path, seed=5) == improve(tmp_path, seed=5)


def test_every_rollout_is_charged_and_a_cap_stops_it(tmp_path: Path) -> None:
    task, engine, budget = toy_task(), ToyEngine(), Budget()
    PromptLever(SETTINGS).improve(task.base_candidate(), task, engine, budget, 0, tmp_path, NullProgress())
    assert budget.spent.rollouts == engine.calls  # one call a rollout
    with pytest.raises(BudgetExhausted):
        improve(tmp_path, budget=Budget({"rollouts": 50}))


def test_two_examples_are_enough(tmp_path: Path) -> None:
    rows = toy_task().train[:2]
    assert improve(tmp_path, train=rows).candidate.prompts["solve"].instructions


def test_labelled_demos_need_every_field() -> None:
    program = toy_task().program()
    rows = [dspy.Example(question="1", answer="2"), dspy.Example(question="3")]
    assert labelled_demos(program, rows) == {"solve": [{"question": "1", "answer": "2"}]}


def test_drawn_demos_differ_in_their_answers_first() -> None:
    import random

    pool = [{"q": str(i), "a": "x"} for i in range(20)] + [{"q": "y", "a": "y"}, {"q": "z", "a": "z"}]
    for seed in range(5):
        assert {d["a"] for d in draw(pool, ["a"], 3, random.Random(seed))} == {"x", "y", "z"}


def test_the_right_answer_scores_1_through_the_whole_path(tmp_path: Path) -> None:
    assert right(dspy.Example(answer="3"), dspy.Prediction(answer="3")) == 1.0
