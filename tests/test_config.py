"""Settings: strict keys, YAML, flags and overrides, messages that name the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colever.config import SweepConfig, check_caps, parse_schedule
from colever.errors import UsageError
from colever.loading import load_config, parse_pairs


def test_the_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        flags={"task": "t", "trials": 9}, overrides={"weights.learning_rate": 2e-5, "budget.rollouts": 10}
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "c.yaml") == config


def test_flags_win_over_the_file_and_none_is_no_flag(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("task: a\nseed: 3\nweights: {updates: 7, learning_rate: 1e-5}\n")
    config = load_config(file, flags={"task": "b", "seed": None}, overrides={"weights.updates": 8})
    assert (config.task, config.seed, config.weights.updates, config.weights.learning_rate) == ("b", 3, 8, 1e-5)


def test_flags_may_complete_what_a_file_says_in_part(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("task: a\naxis: dollars\n")
    assert load_config(file, overrides={"dollars_per_hour": 2}).dollars_per_hour == 2
    with pytest.raises(UsageError, match="axis=dollars needs a price"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: a\nwieghts: {}\n", "wieghts: unknown key"),
        ("task: a\nweights: {lr: 1}\n", "weights.lr: unknown key; accepted here: "),
        ("task: a\nprompt: {demos: -1}\n", "prompt.demos"),
        ("task: a\nbudget: {rollouts: -5}\n", "budget: rollouts=-5"),
        ("task: a\nbudget: {euros: 5}\n", "budget: unknown key 'euros'"),
        ("task: a\nschedules: [p, q]\n", "schedule 'q'"),
        ("- 1\n", "a mapping of settings"),
        ("a: [\n", "not YAML"),
        ("task: a\n1: 2\n", "key 1 is no text; accepted: names of settings"),
        ("task: a\ntrue: 3\n", "key True is no text; accepted: names of settings"),
        ("task: a\nweights: {null: 3}\n", "key None is no text"),
        ("task: a\nweights: &w\n  lr: *w\n", "an alias (*name) stands inside what it names"),
        ("task: a\nschedules: &s [*s]\n", "an alias (*name) stands inside what it names"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert said in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_a_quantized_base_needs_an_adapter() -> None:
    flags, quantized = {"task": "t"}, {"engine.quantization": "nf4"}
    assert load_config(flags=flags, overrides=quantized).weights.peft == "auto"
    with pytest.raises(UsageError, match=r"engine\.quantization=nf4.*weights\.peft=none.*accepted"):
        load_config(flags=flags, overrides=quantized | {"weights.peft": "none"})


@pytest.mark.parametrize(
    "name", ["12e45", "1e5", "1E-4", "1_000", "0x1f", "0o17", "true", "null", "1.5", "2026-01-01", "_e3"]
)
def test_names_that_look_like_something_else_read_back(tmp_path: Path, name: str) -> None:
    config = load_config(flags={"task": name, "model": name, "study": name})
    assert config.study_name == name
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize("key", [".x", "weights..updates", "weights.", "."])
def test_a_setting_with_an_empty_part_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"^--set {re.escape(key)}: a part of the name is empty; accepted: such as"):
        load_config(flags={"task": "t"}, overrides=parse_pairs([f"{key}=1"], "--set"))


def test_an_alias_of_another_setting_is_fine(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: a\nbudget: &caps {rollouts: 1e5}\nround_budget: *caps\n")
    config = load_config(tmp_path / "c.yaml")
    assert config.budget == config.round_budget == {"rollouts": 1e5}


def test_pairs_are_yaml_and_settings_read_plain_exponents() -> None:
    assert parse_pairs(["a.b=1.0e-4", "c=lora", "d=3"], "--set") == {"a.b": 1e-4, "c": "lora", "d": 3}
    given = parse_pairs(["weights.learning_rate=1e-5", "weights.updates=1e2", "budget.rollouts=1e5"], "--set")
    config = load_config(flags={"task": "t"}, overrides={**given, "search": {"weights.updates": ["1e1", "1e2"]}})
    assert (config.weights.learning_rate, config.weights.updates) == (1e-5, 100)
    assert (config.budget, config.search) == ({"rollouts": 1e5}, {"weights.updates": (10, 100)})
    with pytest.raises(UsageError, match="--budget"):
        parse_pairs(["rollouts"], "--budget")


def test_a_schedule_is_letters_or_bettertogethers_arrows() -> None:
    assert parse_schedule("p,w") == parse_schedule("p -> w") == ("prompt", "weights")
    with pytest.raises(UsageError, match="accepted: p and w"):
        parse_schedule("p,x")


def test_schedules_are_kept_in_one_spelling() -> None:
    assert SweepConfig(task="t", schedules=("p -> w", "w,p")).schedules == ("p,w", "w,p")


def test_a_cap_is_finite() -> None:
    with pytest.raises(UsageError, match="rollouts=inf; accepted: a finite number"):
        check_caps({"rollouts": float("inf")})


def test_a_study_is_named_after_task_model_and_seed() -> None:
    assert SweepConfig(task="arithmetic").study_name == "arithmetic-seed-s0"
    assert (
        SweepConfig(task="dir/my_task.py:task", model="Qwen/Qwen3-0.6B", seed=2).study_name
        == "my_task-task-Qwen3-0.6B-s2"
    )
