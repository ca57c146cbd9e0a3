"""What every implementation of a protocol must pass: subclass, say what to test, and the checks come with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from colever.errors import BudgetExhausted
from colever.optimizers.budget import Budget
from colever.optimizers.lever import Lever, NullProgress, Pull
from colever.tasks.task import Task
from colever.types import Candidate


class Unreadable(list[Any]):
    """A split that no lever may look into."""

    def __iter__(self) -> Any:
        raise AssertionError("a split other than train was read")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a split other than train was read")


def forbidden(*_: Any) -> float:
    raise AssertionError("gold was read")


class LeverConformance:
    """A subclass has a fixture ``engine`` and says which lever (with settings of seconds) on which task."""

    def lever(self) -> Lever:
        raise NotImplementedError

    def task(self, **changes: Any) -> Task:
        raise NotImplementedError

    def parent(self, task: Task) -> Candidate:
        """What is improved."""
        return task.base_candidate()

    def pull(self, engine: Any, workdir: Path, budget: Budget | None = None, seed: int = 3, **changes: Any) -> Pull:
        task = self.task(**changes)
        parent = self.parent(task)
        before = parent.to_json()
        made = self.lever().improve(parent, task, engine, budget or Budget(), seed, workdir, NullProgress())
        assert parent.to_json() == before
        return made

    def test_a_pull_has_a_candidate_of_the_same_predictors(self, engine: Any, tmp_path: Path) -> None:
        pull = self.pull(engine, tmp_path)
        assert isinstance(pull, Pull)
        predictors = {name for name, _ in self.task().program().named_predictors()}
        assert set(pull.candidate.prompts) == predictors
        assert Candidate.from_json(json.loads(json.dumps(pull.candidate.to_json()))).digest == pull.candidate.digest
        assert pull.metrics
        for curve in pull.metrics.values():
            assert all(isinstance(step, int) and math.isfinite(value) for step, value in curve)
        json.dumps(pull.notes)

    def test_it_moves_its_own_lever_only(self, engine: Any, tmp_path: Path) -> None:
        """A weight lever that folds prompts into weights hands the task's own back."""
        lever, base = self.lever(), self.task().base_candidate()
        parent = self.parent(self.task())
        child = self.pull(engine, tmp_path).candidate
        if lever.name == "prompt":
            assert child.weights == parent.weights
        else:
            folds = getattr(lever.settings, "fold", False)
            assert child.prompts == (base if folds else parent).prompts

    def test_a_setting_that_it_does_not_know_raises(self) -> None:
        settings = self.lever().settings
        with pytest.raises(ValidationError, match="no_such_setting"):
            type(settings)(**{**settings.model_dump(), "no_such_setting": 1})

    def test_gold_dev_test_and_watched_splits_are_not_read(self, engine: Any, tmp_path: Path) -> None:
        hidden = {"dev": Unreadable(), "test": Unreadable(), "watched": {"far": Unreadable()}}
        self.pull(engine, tmp_path, gold=forbidden, **hidden)

    def test_what_the_engine_did_is_charged(self, engine: Any, tmp_path: Path) -> None:
        budget, before = Budget(), engine.meter
        self.pull(engine, tmp_path, budget)
        after = engine.meter
        assert budget.spent.rollouts > 0
        assert budget.spent.prompt_tokens == after.prompt_tokens - before.prompt_tokens > 0
        assert budget.spent.completion_tokens == after.completion_tokens - before.completion_tokens > 0

    def test_a_cap_is_not_passed(self, engine: Any, tmp_path: Path) -> None:
        budget = Budget({"rollouts": 1})
        with pytest.raises(BudgetExhausted):
            self.pull(engine, tmp_path, budget)
        assert budget.spent.rollouts <= 1

    def test_equal_seeds_make_equal_children(self, engine: Any, tmp_path: Path) -> None:
        one, two = (self.pull(engine, tmp_path / name).candidate for name in ("one", "two"))
        assert one.digest == two.digest
