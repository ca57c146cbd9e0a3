"""The headroom test: what being chosen earns is not counted, and a pull without headroom returns its parent."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from scripted_openai import ScriptedOpenAI
from test_prompt_ways import lever_of, pull, written
from toy import BAD, GOOD, ToyEngine, toy_task

from colever.optimizers.budget import Budget
from colever.optimizers.headroom import cross_fitted
from colever.optimizers.prompt_lever import PromptLever


def test_the_best_of_many_equals_gains_nothing() -> None:
    rng, gains, missed = random.Random(0), [], 0
    for _ in range(200):
        parent = [float(rng.random() < 0.5) for _ in range(40)]
        candidates = [[float(rng.random() < 0.5) for _ in range(40)] for _ in range(16)]
        effect = cross_fitted(parent, candidates)
        gains.append(effect.value)
        missed += not effect.low <= 0 <= effect.high
    assert abs(sum(gains) / len(gains)) < 0.03  # the best of 16 on the same examples would seem to gain 0.14
    assert missed <= 0.1 * len(gains)


def test_a_real_gain_is_found() -> None:
    rng = random.Random(1)
    parent = [float(rng.random() < 0.4) for _ in range(48)]
    good = [max(p, float(rng.random() < 0.5)) for p in parent]
    effect = cross_fitted(parent, [parent, good])
    assert effect.low > 0
    assert effect.value == pytest.approx((sum(good) - sum(parent)) / 48)


@pytest.fixture(scope="module")
def server() -> Any:
    with ScriptedOpenAI(written) as running:
        yield running


def test_no_headroom_ends_the_pull_before_the_proposer_is_asked(server: ScriptedOpenAI, tmp_path: Path) -> None:
    """Wordings that change nothing, and no demos: nothing to gain."""
    task = {"instructions": {"solve": [f"Solve it, please ({i})." for i in range(12)]}}
    budget, engine = Budget(), ToyEngine()
    lever = lever_of("gepa", server, headroom="auto", demos=0, examples=40, headroom_gain=0.06)
    made = pull(lever, tmp_path, engine, budget, **task)
    tested = made.notes["headroom"]
    assert tested["verdict"] == "no-go"
    assert tested["high"] < 0.06
    assert tested["rollouts"] == 13 * 40 == engine.calls
    assert budget.spent.proposer_calls == 0
    assert made.candidate == toy_task().base_candidate()
    assert "no headroom: the best of 12 candidates gains +0.0" in made.notes["chosen"]


def test_headroom_goes_on_to_the_search(server: ScriptedOpenAI, tmp_path: Path) -> None:
    lever = lever_of("copro", server, headroom="auto", demos=0, examples=40)
    made = pull(lever, tmp_path, instructions={"solve": [BAD, GOOD]})
    assert made.notes["headroom"]["verdict"] == "go"
    assert made.notes["headroom"]["gain"] > 0.1
    assert len(made.notes["tried"]) > 1


def test_where_there_is_little_to_try_the_proposer_writes_candidates(server: ScriptedOpenAI, tmp_path: Path) -> None:
    lever = lever_of("simba", server, headroom="on", demos=0, examples=40)
    before = len(server.asked)
    made = pull(lever, tmp_path, instructions={})
    assert made.notes["headroom"]["candidates"] >= 1
    assert len(server.asked) > before


@pytest.mark.parametrize(("way", "asked", "tested"), [("choice", "auto", False), ("choice", "on", True)])
def test_ways_without_a_proposer_are_tested_when_asked_to(
    way: str, asked: str, tested: bool, server: ScriptedOpenAI, tmp_path: Path
) -> None:
    lever: PromptLever = lever_of(way, server, headroom=asked, examples=40)
    made = pull(lever, tmp_path)
    assert (made.notes["headroom"] is not None) == tested
