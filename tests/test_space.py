"""What a sweep searches: ranges that every trial can draw from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from toy import ToyEngine, toy_task

from colever.config import PROMPT_WAYS, PromptSettings
from colever.engines.lm import engine_lm
from colever.errors import UsageError
from colever.loading import load_config, parse_pairs
from colever.optimizers import space
from colever.optimizers.prompt_lever import PromptLever


def ranges(search: Any) -> list[Any]:
    return space.ranges(load_config(flags={"task": "t"}, overrides={"search": search}))


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("weights.group_size", (1, 16), "weights.group_size: 1 is in the range.*greater than or equal to 2"),
        ("weights.temperature", (0.5, 3), "weights.temperature: 3 is in the range.*less than or equal to 2"),
        ("weights.learning_rate", (0, 1), "weights.learning_rate: 0 is in the range.*greater than 0"),
        ("weights.updates", (1, float("inf")), "weights.updates: inf; accepted: a whole number"),
        ("weights.updates", (1.5, 80), "weights.updates: 1.5; accepted: a whole number"),
        ("weights.learning_rate", (1e-5, float("inf")), "weights.learning_rate: inf; accepted: a finite number"),
        ("weights.updates", (1, 2), "weights.updates: the arms' value 40 must lie in the range"),
        ("weights.loss", (1, 2), "weights.loss: 1.0; accepted: grpo, bnpo, dr_grpo, dapo, cispo"),
        ("weights.loss", ("grpo", "ppo"), "weights.loss: 'ppo'; accepted: grpo"),
        ("weights.loss", ("grpo", "bnpo"), "weights.loss: the arms' value dapo must be among grpo, bnpo"),
        (
            "weights.curriculum",
            (0, 1),
            "'weights.curriculum' is no setting that can be searched; accepted: prompt.cand",
        ),
        ("weights.updates", ("few", "many"), r"weights.updates: \['few', 'many'\]; accepted: \[low, high\]"),
        ("split", (0.1, 0.5), "split: there is nothing to split without trial_rollouts"),
    ],
)
def test_a_range_that_a_trial_cannot_draw_from(name: str, limits: tuple[float, float], said: str) -> None:
    with pytest.raises(UsageError, match=f"^search: {said}"):
        ranges({name: list(limits)})


def test_ranges_at_the_edge_of_what_is_accepted() -> None:
    found = ranges({"weights.group_size": [2, 16], "prompt.threshold": [0, 1]})
    assert [(r.name, r.low, r.high, r.whole) for r in found] == [
        ("weights.group_size", 2, 16, True),
        ("prompt.threshold", 0, 1, False),
    ]


def test_words_are_searched_too() -> None:
    (found,) = ranges({"weights.loss": ["grpo", "dapo", "grpo"]})
    assert (found.words, found.default) == (("grpo", "dapo"), "dapo")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"search": {"weights.adapters": ["shared", "per_predictor"], "weights.peft": ["auto", "none"]}},
            "search: weights.adapters: a trial could draw what no study may have: weights.adapters=per_predictor needs",
        ),
        (
            {"search": {"weights.peft": ["auto", "none"]}, "engine.quantization": "nf4"},
            "search: weights.peft: a trial could draw what no study may have: engine.quantization=nf4",
        ),
        (
            {"search": {"weights.updates": [1, 40]}, "trial_rollouts": 500},
            "search: weights.updates: it follows from trial_rollouts and split",
        ),
    ],
)
def test_what_a_trial_could_not_have_or_would_not_keep_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}"):
        space.ranges(load_config(flags={"task": "t"}, overrides=settings))


def test_the_wide_space_has_what_people_tune_and_every_arm_is_a_point_of_it() -> None:
    config = load_config(flags={"task": "t", "model": "m"}, overrides={"search": "wide"})
    names = {r.name for r in space.ranges(config)}
    assert names == {
        "weights.learning_rate", "weights.updates", "weights.group_size", "weights.temperature", "weights.beta",
        "weights.loss", "weights.lora_rank", "prompt.demos", "prompt.way",
    }  # fmt: skip
    assert space.arm_params(config, "p,w")["weights.loss"] == "dapo"
    seed = load_config(flags={"task": "t"}, overrides={"search": "wide"})
    assert "weights.lora_rank" not in {r.name for r in space.ranges(seed)}  # all its weights are trained


def test_what_is_drawn_from_the_wide_space_is_accepted() -> None:
    config = load_config(flags={"task": "t"}, overrides={"search": "wide", "trial_rollouts": 4000})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        schedule, settings = space.suggest(study.ask(), config)
        prompt, weights = space.with_settings(config, schedule, settings, lambda p: 32 * (10 + p.candidates))
        assert weights.loss == settings["weights.loss"]
        assert prompt.demos == settings["prompt.demos"]


@pytest.mark.parametrize("schedule", ["p", "w", "p,w", "w,p", "p,w,p", "adaptive"])
@pytest.mark.parametrize("split", [0.1, 0.5])
def test_trials_of_any_schedule_cost_the_same(schedule: str, split: float) -> None:
    config = load_config(flags={"task": "t"}, overrides={"trial_rollouts": 12_000, "split": split})

    def planned(prompt: PromptSettings) -> int:
        return (6 + prompt.candidates) * prompt.screen + 5 * prompt.examples

    prompt, weights = space.with_settings(config, schedule, {}, planned)
    p, w = (1, config.adaptive_slices) if schedule == "adaptive" else (schedule.count("p"), schedule.count("w"))
    spent = p * planned(prompt) + w * weights.updates * weights.examples_per_update * weights.group_size
    assert 0.9 * 12_000 <= spent <= 12_000
    if p and w:
        assert p * planned(prompt) == pytest.approx(split * 12_000, abs=p * prompt.screen)


def test_a_small_share_still_buys_a_round_of_each() -> None:
    config = load_config(flags={"task": "t"}, overrides={"trial_rollouts": 200})

    def planned(prompt: PromptSettings) -> int:
        return (6 + prompt.candidates) * prompt.screen + 5 * prompt.examples

    prompt, weights = space.with_settings(config, "p,w", {}, planned)
    assert weights.updates == 1
    assert planned(prompt) <= 50
    assert prompt.screen >= 4


@pytest.mark.parametrize("way", [*PROMPT_WAYS, f"{Path(__file__).parent / 'users_teleprompter.py'}:LastWord"])
@pytest.mark.parametrize("share", [200, 2000])
def test_every_way_fits_into_its_share(way: str, share: int) -> None:
    """Whatever a way goes by, and the least that it takes: candidates, or rollouts."""
    config = load_config(flags={"task": "t"}, overrides={"trial_rollouts": share, "prompt.way": way})
    task, proposer = toy_task(), engine_lm(ToyEngine())  # type: ignore[arg-type]

    def planned(prompt: PromptSettings) -> int:
        return PromptLever(prompt, proposer).planned(task.base_candidate(), task)

    prompt, _ = space.with_settings(config, "p", {}, planned)
    assert 0 < planned(prompt) <= share


def test_a_search_that_is_neither_a_name_nor_settings_is_said() -> None:
    with pytest.raises(UsageError, match="search: 'deep'; accepted: narrow, wide, or settings as"):
        load_config(flags={"task": "t"}, overrides={"search": "deep"})
    with pytest.raises(UsageError, match="elsewhere: Input should be a list, got 'lookup'"):
        load_config(flags={"task": "t"}, overrides={"elsewhere": "lookup"})


def test_the_way_of_a_prompt_round_is_searched_and_without_a_proposer_some_are_left_out() -> None:
    words = "[choice, fewshot, gepa, mipro]"
    alone = load_config(flags={"task": "t"}, overrides=parse_pairs([f"search={{prompt.way: {words}}}"], "--set"))
    assert space.drawn_ways(alone) == ("choice", "fewshot")
    assert space.left_out(alone) == "Without a proposer (--prompt-model) the search leaves out gepa, mipro."
    asked = alone.model_copy(update={"proposer": alone.proposer.model_copy(update={"model": "policy"})})
    assert space.drawn_ways(asked) == ("choice", "fewshot", "gepa", "mipro")
    assert space.left_out(asked) == ""
    wide = load_config(flags={"task": "t"}, overrides={"search": "wide"})
    assert space.drawn_ways(wide) == ("choice", "fewshot", "knn")
    assert space.drawn_ways(load_config(flags={"task": "t"})) == ("choice",)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{prompt.way: [choice, mipr0]}", "'mipr0'; accepted: choice, instructions"),
        ("{prompt.way: [fewshot]}", "the arms' value choice must be among fewshot"),
        ("{prompt.way: [gepa]}", "the arms' value choice must be among at least one word"),
        ("{prompt.way: [choice, knn], prompt.demos: [0, 8]}", "knn is about demos, and prompt.demos may be 0"),
    ],
)
def test_ways_that_cannot_be_searched(search: str, said: str) -> None:
    config = load_config(flags={"task": "t"}, overrides=parse_pairs([f"search={search}"], "--set"))
    with pytest.raises(UsageError, match=re.escape(said)):
        space.ranges(config)
