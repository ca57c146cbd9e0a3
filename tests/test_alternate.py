"""The loop: what is kept, what is never computed twice, what is stored and what is not."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from toy import GOOD, ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.config import PromptSettings
from colever.errors import BudgetExhausted, LeverError
from colever.optimizers import alternate as module
from colever.optimizers.alternate import alternate, derive_seed
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.lever import Lever, Pull
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.types import Candidate, PredictorPrompt


class Sets:
    """A prompt lever that sets one wording and counts its pulls."""

    name = "prompt"
    settings = PromptSettings()

    def __init__(self, wording: str) -> None:
        self.wording, self.pulls = wording, 0

    def improve(self, candidate: Candidate, *_: Any) -> Pull:
        self.pulls += 1
        return Pull(Candidate({"solve": PredictorPrompt(self.wording)}, candidate.weights))


class Breaks(Sets):
    def improve(self, candidate: Candidate, *_: Any) -> Pull:
        raise ZeroDivisionError("of its own")


class Bench:
    """One task on one engine in one home."""

    def __init__(self, home: Path, wording: str = GOOD, seed: int = 0, **task: Any) -> None:
        self.engine, self.home = ToyEngine(), home
        self.evaluator = Evaluator.of(toy_task(**task), self.engine, EvaluationStore(home), seed)
        self.store = RoundStore(home)
        self.prompt = Sets(wording)
        self.levers: dict[Any, Lever] = {"prompt": self.prompt, "weights": ToyWeightLever(ToyWeightSettings())}

    def run(self, *schedule: Any, budget: Budget | None = None, **more: Any) -> Any:
        base = self.evaluator.task.base_candidate()
        return alternate(base, schedule, self.levers, self.evaluator, self.store, budget=budget or Budget(), **more)


def test_it_is_one_screen() -> None:
    assert len(inspect.getsource(module.alternate).splitlines()) < 80


def test_a_better_child_is_kept_and_the_next_round_starts_from_it(tmp_path: Path) -> None:
    first, second = Bench(tmp_path).run("prompt", "weights")
    assert first.accepted
    assert second.parent == first.child
    assert second.before == first.after
    assert second.after.score > second.before.score > first.before.score
    assert second.child.prompts == first.child.prompts
    assert second.cost.trained_tokens == 300
    assert second.cost.rollouts == 24 + 60  # its updates, and dev


def test_a_child_that_is_no_better_is_recorded_and_dropped(tmp_path: Path) -> None:
    first, second = Bench(tmp_path, wording="Do what you like.").run("prompt", "weights")
    assert not first.accepted
    assert first.child.prompts["solve"].instructions == "Do what you like."
    assert second.parent == first.parent == first.kept


def test_gold_does_not_decide(tmp_path: Path) -> None:
    worse_gold = {"gold": lambda example, prediction: float(prediction.answer == "no idea")}
    (record,) = Bench(tmp_path, **worse_gold).run("prompt")
    assert record.accepted
    assert record.after.gold < record.before.gold


def test_a_shared_prefix_is_computed_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (alone,) = bench.run("prompt")
    seen: list[bool] = []
    both = bench.run("prompt", "weights", on_round=lambda i, r, reused: seen.append(reused) is None)
    calls = bench.engine.calls
    assert seen == [True, False]
    assert both[0] == alone
    assert bench.prompt.pulls == 1
    again = Bench(tmp_path)
    assert again.run("prompt", "weights") == both
    assert again.engine.calls == 0 < calls


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_tokens": 17}, {"dev": toy_task().test, "test": toy_task().dev}], ids=str
)
def test_another_seed_or_task_is_another_round(tmp_path: Path, change: dict[str, Any]) -> None:
    Bench(tmp_path).run("prompt")
    other = Bench(tmp_path, **change)
    other.run("prompt")
    assert other.prompt.pulls == 1


def test_another_setting_is_another_round(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (one,) = bench.run("weights")
    bench.levers["weights"] = ToyWeightLever(ToyWeightSettings(updates=4))
    (other,) = bench.run("weights")
    assert one.key != other.key


def test_a_failed_pull_raises_and_is_not_stored(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.levers["prompt"] = Breaks(GOOD)
    with pytest.raises(LeverError, match="prompt lever failed: ZeroDivisionError"):
        bench.run("prompt")
    bench.levers["prompt"] = bench.prompt
    bench.run("prompt")
    assert bench.prompt.pulls == 1


def test_a_round_cut_by_a_cap_is_not_stored_and_goes_on_later(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(BudgetExhausted):
        bench.run("weights", budget=Budget({"rollouts": 20}))
    assert list(bench.store.folder.glob("*/record.json")) == []
    updates: list[int] = []
    bench.levers["weights"] = ToyWeightLever(ToyWeightSettings(), on_update=lambda: updates.append(1))
    (record,) = bench.run("weights")
    assert len(updates) == 1  # two were done
    assert record.cost.rollouts == 24 + 60
    assert record == Bench(tmp_path / "fresh").run("weights")[0] or record.after.scores


def test_round_caps_are_part_of_the_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run("prompt")
    bench.run("prompt", round_caps={"rollouts": 1000})
    assert bench.prompt.pulls == 2


def test_on_round_may_stop_the_schedule(tmp_path: Path) -> None:
    assert len(Bench(tmp_path).run("prompt", "weights", on_round=lambda *_: False)) == 1


def test_seeds_come_from_the_place() -> None:
    assert derive_seed(0, 0) == derive_seed(0, 0) != derive_seed(0, 1) != derive_seed(1, 0)
    assert 0 <= derive_seed(3, 2) < 2**31
