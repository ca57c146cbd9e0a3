"""The benchmark of weight levers: what TRL is given is what the program saw, and its reward is the rollout's score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colever.engines.lm import engine_lm, open_engine
from colever.pipelines.rollout import run_rollouts
from colever.tasks.load import BUNDLED, load_task
from colever.types import Rollout

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def engine():
    return open_engine("seed")


def sampled(task, engine, temperature: float) -> list[Rollout]:
    return run_rollouts(
        task.program(), task.examples("train"), lm=engine_lm(engine), score=task.score, fail=task.fail,
        temperature=temperature, max_tokens=task.max_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("name", BUNDLED)
def test_trls_reward_is_the_score_of_the_programs_own_rollout(name, engine):
    from weight_levers_trl import LastCall, rewards

    task = load_task(name)
    task = replace(task, train=task.train[:24])
    rollouts = sampled(task, engine, temperature=1.0)
    last = list(dict(task.program().named_predictors()))[-1]
    made = [(r, e) for r, e in zip(rollouts, task.train, strict=True) if r.steps[-1].predictor == last]
    calls = [LastCall(e, "", tuple(s.completion.text for s in r.steps[:-1])) for r, e in made]
    found = rewards(task, calls, [r.steps[-1].completion.text for r, _ in made])
    assert found == [r.score.total for r, _ in made]
    assert len(set(found)) > 1
    assert rewards(task, calls[:2], ["no field at all", ""]) == [0.0, 0.0]


def test_trls_prompts_are_those_of_the_greedy_program(engine):
    from weight_levers_trl import last_calls

    task = load_task("lookup")
    task = replace(task, train=task.train[:24])
    rollouts = sampled(task, engine, temperature=0.0)
    reached = [r for r in rollouts if r.steps[-1].predictor == "reply"]
    calls = last_calls(task, engine)
    assert 0 < len(calls) == len(reached)
    for call, rollout in zip(calls, reached, strict=True):
        assert tuple(engine.tokenizer(text=call.prompt)["input_ids"]) == rollout.steps[-1].completion.prompt_ids
        assert len(call.before) == len(rollout.steps) - 1


def test_an_interval_over_seeds_and_examples_holds_both_variations():
    from weight_levers_results import difference, over_seeds_and_examples

    rng = np.random.default_rng(0)
    examples = rng.random((1, 400)) < 0.5
    same = over_seeds_and_examples(np.repeat(examples, 3, axis=0))
    one = over_seeds_and_examples(examples)
    assert same.high - same.low == pytest.approx(one.high - one.low, abs=0.01)  # three copies are not more examples
    seeds = over_seeds_and_examples([[0.2] * 400, [0.5] * 400, [0.8] * 400])
    assert (seeds.low, seeds.value, seeds.high) == pytest.approx((0.2, 0.5, 0.8))
    level = over_seeds_and_examples(np.ones((3, 400)))
    assert level.high == 1.0
    assert 0.98 < level.low < 1.0
    shifted = difference(0.25 + 0.5 * examples, 0.5 * examples)  # examples are paired
    assert (shifted.low, shifted.high) == pytest.approx((0.25, 0.25))
    assert shifted.resolved


def test_results_are_found_again_and_failed_ones_are_not(tmp_path):
    from weight_levers_results import Folder, Result, as_json, table

    folder = Folder(tmp_path)
    base = Result("routing", "base", 0, (1.0, 0.0), (1.0, 0.5))
    done = Result("routing", "colever", 0, (1.0, 1.0), (1.0, 0.75), seconds=3.0, rollouts=8, notes={"a": 1})
    failed = Result("routing", "trl", 0, failed="ValueError: no")
    for result in (base, done, failed):
        folder.put(result, "d" * 64)
    assert folder.get("routing", "colever", 0, "d" * 64) == done
    assert folder.get("routing", "colever", 0, "e" * 64) is None
    assert folder.get("routing", "trl", 0, "d" * 64) is None
    lines = table([base, done, failed], ["colever", "trl"])
    assert lines[-1] == "routing, trl, seed 0 failed: ValueError: no"
    found = as_json([base, done, failed], ["colever", "trl"])["routing"]
    assert found["colever"]["score"] == 100.0
    assert found["colever"]["seconds"] == 3.0
    assert found["trl"] == {"score": None, "low": None, "high": None, "seconds": None, "cpu_seconds": None}
