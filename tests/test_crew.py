"""What is refused before any process is started, and what a study may change when it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from colever.config import SweepConfig, TrainingSettings, WeightSettings
from colever.crew import Crew, refuse
from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.sweep import levers_for
from colever.optimizers.weight_lever import WeightLever


def configured(**overrides: Any) -> SweepConfig:
    return load_config(flags={"task": "arithmetic"}, overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.sharding": "fsdp"}, "training.sharding=fsdp needs several processes"),
        ({"training.processes": 0}, "training.processes"),
        ({"training.processes": 2, "engine.kind": "vllm"}, "accepted with it: engine.kind=transformers"),
        (
            {"training.processes": 2, "training.sharding": "fsdp", "engine.quantization": "nf4"},
            "accepted with it: training.sharding=none",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configured(**overrides)


def test_how_a_pull_is_trained_may_change_when_a_study_goes_on() -> None:
    assert "training" in configured().resumable
    assert TrainingSettings() == configured().training


def test_a_launcher_s_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="accepted without one: --processes 2"):
        refuse(configured(), 1)


def test_workers_that_would_each_start_processes_are_refused() -> None:
    refuse(configured(**{"training.processes": 2}), 1)
    refuse(configured(), 2)
    with pytest.raises(UsageError, match="accepted: one of them above 1"):
        refuse(configured(**{"training.processes": 2}), 2)


def test_who_starts_no_processes_says_so() -> None:
    with pytest.raises(UsageError, match="accepted here: 1"):
        levers_for(configured(**{"training.processes": 2}), engine=None)  # type: ignore[arg-type]


def test_one_process_pulls_the_lever_itself(tmp_path) -> None:
    lever = Crew(configured(), tmp_path, "digest").lever(WeightSettings(updates=3))
    assert isinstance(lever, WeightLever)
    two = Crew(configured(**{"training.processes": 2}), tmp_path, "digest").lever(WeightSettings(updates=3))
    assert (two.name, two.settings) == ("weights", WeightSettings(updates=3))
