"""The adaptive schedule: each lever once, then the better promise per cost, a second chance, an end; and in a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_attribution import BASE, candidate, evaluation
from test_sweep import Told, run, timeless

from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers import space
from colever.optimizers.adaptive import adaptive, fixed, gain_bound
from colever.optimizers.attribution import report_of
from colever.optimizers.study import StudyFolder
from colever.tracking.report_json import to_json
from colever.types import Cost, RoundRecord


def pull(lever: str, before: float, after: float, flops: float = 1.0) -> RoundRecord:
    """A round whose child is right on so many of 400 examples."""
    states = [evaluation(score, count=400) for score in (before, after)]
    return RoundRecord(
        f"{lever}{before}{after}",
        lever,
        {},
        0,
        BASE,
        candidate("c", "base"),
        *states,
        after > before,
        Cost(flops=flops),
    )  # type: ignore[arg-type]


def chosen(*rounds: RoundRecord, most: int = 8) -> str | None:
    return adaptive(most)(rounds)


def test_each_lever_is_pulled_once_first() -> None:
    assert chosen() == "prompt"
    assert chosen(pull("prompt", 0.5, 0.9)) == "weights"
    assert chosen(pull("prompt", 0.5, 0.5)) == "weights"


def test_the_better_gain_per_cost_is_next() -> None:
    prompt, weights = pull("prompt", 0.5, 0.6), pull("weights", 0.6, 0.9)
    assert chosen(prompt, weights) == "weights"
    assert chosen(prompt, replace(weights, cost=Cost(flops=10))) == "prompt"
    by_rollouts = [replace(prompt, cost=Cost(rollouts=10)), replace(weights, cost=Cost(rollouts=100))]
    assert chosen(*by_rollouts) == "prompt"


def test_a_trial_of_given_rollouts_ends_before_a_pull_that_goes_beyond() -> None:
    config = load_config(flags={"task": "t"}, overrides={"trial_rollouts": 300})
    order = space.order_of(config, "adaptive", 1.0)
    dev = 400  # of each child, outside the levers' rollouts
    rounds = [replace(pull("prompt", 0.5, 0.6), cost=Cost(rollouts=dev + 100))]
    assert order(rounds) == "weights"
    rounds.append(replace(pull("weights", 0.6, 0.7), cost=Cost(rollouts=dev + 100)))
    assert order(rounds) is not None  # 200 of 300
    rounds.append(replace(pull("weights", 0.7, 0.8), cost=Cost(rollouts=dev + 100)))
    assert order(rounds) is None
    assert space.order_of(config.model_copy(update={"trial_rollouts": None}), "adaptive", 1.0)(rounds) is not None


def test_a_lever_that_did_not_pay_waits_for_the_other() -> None:
    nothing = pull("prompt", 0.5, 0.5)
    assert chosen(nothing, pull("weights", 0.5, 0.6)) in ("prompt", "weights")
    assert chosen(pull("prompt", 0.5, 0.6), pull("weights", 0.6, 0.6)) == "prompt"
    assert chosen(nothing, pull("weights", 0.5, 0.6), pull("weights", 0.6, 0.6)) == "prompt"
    assert chosen(nothing, pull("weights", 0.5, 0.6), pull("weights", 0.6, 0.6), nothing) is None
    assert chosen(nothing, pull("weights", 0.5, 0.5)) is None


def test_it_ends_at_its_most_rounds() -> None:
    rounds: list[RoundRecord] = []
    while (name := adaptive(5)(rounds)) is not None:
        rounds.append(pull(name, 0.1 * len(rounds), 0.1 * len(rounds) + 0.1))
    assert len(rounds) == 5
    assert chosen(pull("prompt", 0.5, 0.99)) == "weights"
    assert chosen(pull("prompt", 0.5, 1.0)) is None


def test_an_uncertain_gain_promises_more() -> None:
    sure, unsure = pull("prompt", 0.5, 0.52), pull("prompt", 0.5, 0.52)
    scores = tuple(1 - s if i % 4 == 0 else s for i, s in enumerate(unsure.after.scores))
    unsure = replace(unsure, after=replace(unsure.after, scores=scores))
    shift = sum(a - b for a, b in zip(scores, sure.after.scores, strict=True)) / 400  # type: ignore[operator]
    assert gain_bound(sure) > 0.02
    assert gain_bound(unsure) - shift > gain_bound(sure)
    empty = replace(sure.after, scores=(None,) * 400)
    assert gain_bound(replace(sure, after=empty)) == float("inf")


def test_a_fixed_schedule_is_what_it_says() -> None:
    order = fixed(("prompt", "weights"))
    done: Sequence[RoundRecord] = [pull("prompt", 0.5, 0.4)]
    assert (order([]), order(done), order([*done, pull("weights", 0.5, 0.4)])) == ("prompt", "weights", None)


def test_its_weight_rounds_are_slices() -> None:
    config = load_config(flags={"task": "toy"}, overrides={"weights.updates": 40, "adaptive_slices": 4})
    assert space.with_settings(config, "adaptive", {})[1].updates == 10
    assert space.with_settings(config, "adaptive", {"weights.updates": 2})[1].updates == 1
    assert space.with_settings(config, "p,w", {})[1].updates == 40
    with pytest.raises(UsageError, match="or adaptive"):
        load_config(flags={"task": "toy", "schedules": ["adapt"]})


def test_a_study_of_it_goes_on_where_it_was(tmp_path: Path) -> None:
    def adaptive_study(home: Path, **changes: object):
        return run(home, trials=1, schedules=["adaptive"], adaptive_rounds=5, **changes)

    told = Told()
    whole = adaptive_study(tmp_path / "whole", tracker=told)
    pulled = [event[3] for event in told.events if event[0] == "round"]
    assert pulled[:2] == ["prompt", "weights"]
    assert 2 < len(pulled) <= 5
    assert whole.arms[0].schedule == whole.winner == "adaptive"
    count = 0

    def killed() -> None:
        nonlocal count
        count += 1
        if count == 5:  # in the second weight round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adaptive_study(tmp_path / "cut", on_update=killed)
    again = adaptive_study(tmp_path / "cut")
    assert json.dumps(timeless(to_json(again))) == json.dumps(timeless(to_json(whole)))
    assert timeless(to_json(report_of(StudyFolder(tmp_path / "cut", again.study)))) == timeless(to_json(whole))
