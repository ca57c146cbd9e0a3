"""Studies whose prompts are written: the ledger, the report and the store hold what the proposer did and cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_openai import BROKEN, EMPTY, ScriptedOpenAI
from test_prompt_ways import SMALL, written
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.config import SweepConfig
from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.optimizers.store import RoundStore
from colever.optimizers.sweep import levers_for, sweep
from colever.reported import StudyReport
from colever.tracking.report_json import to_json


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(written) as running:
        yield running


def configured(server: ScriptedOpenAI, way: str = "copro", **settings: Any) -> SweepConfig:
    of_prompt = {f"prompt.{k}": v for k, v in {**SMALL, "way": way, **settings.pop("prompt", {})}.items()}
    at = {"proposer.model": f"scripted@{server.address}", "proposer.retries": 0, "proposer.input_price": 10.0}
    flags = {"task": "toy", "trials": 1, "schedules": ["p"], **settings}
    return load_config(flags=flags, overrides={**of_prompt, **at})


def run(config: SweepConfig, home: Path, engine: Any = None) -> StudyReport:
    engine = engine or ToyEngine()
    proposer = open_proposer(config.proposer, engine)
    return sweep(
        config, toy_task(), engine, home,
        levers=lambda p, w: {"prompt": PromptLever(p, proposer), "weights": ToyWeightLever(ToyWeightSettings())},
    )  # fmt: skip


def test_the_report_has_what_a_written_round_did(server: ScriptedOpenAI, tmp_path: Path) -> None:
    report = run(configured(server, prompt={"headroom": "on"}), tmp_path)
    (pulled,) = report.prompt_rounds
    assert (pulled.notes.way, pulled.notes.headroom is not None) == ("copro", True)
    assert report.cost.proposer_calls > 0
    assert report.cost.dollars > 0
    told = to_json(report)
    assert told["cost"]["proposer_calls"] == report.cost.proposer_calls


def test_a_finished_round_asks_nobody_twice(server: ScriptedOpenAI, tmp_path: Path) -> None:
    first = run(configured(server), tmp_path)
    asked, engine = len(server.asked), ToyEngine()
    again = run(configured(server), tmp_path, engine)
    assert len(server.asked) == asked
    assert engine.calls == 0
    assert again.cost == first.cost


def test_another_proposer_is_another_round(server: ScriptedOpenAI, tmp_path: Path) -> None:
    run(configured(server, study="one"), tmp_path)
    warm = configured(server, study="two")
    warm = warm.model_copy(update={"proposer": warm.proposer.model_copy(update={"temperature": 0.3})})
    run(warm, tmp_path)
    assert len(list(RoundStore(tmp_path).folder.glob("*/record.json"))) == 2
    with ScriptedOpenAI(written) as elsewhere:  # of the same name at another address
        run(configured(elsewhere, study="three"), tmp_path)
    assert len(list(RoundStore(tmp_path).folder.glob("*/record.json"))) == 3


def test_a_pull_whose_proposer_fails_is_recorded_as_failed(tmp_path: Path) -> None:
    with ScriptedOpenAI(written) as server:
        config = configured(server, trials=2, schedules=["p", "w"])
        proposer = open_proposer(config.proposer, None)
        server.always = BROKEN

        def levers(p: Any, w: Any) -> Any:
            return {"prompt": PromptLever(p, proposer), "weights": ToyWeightLever(ToyWeightSettings())}

        with pytest.raises(Exception, match="scripted"):
            sweep(config, toy_task(), ToyEngine(), tmp_path, levers=levers)


def test_a_proposer_that_answers_nothing_ends_it_before_anything_is_spent(tmp_path: Path) -> None:
    with ScriptedOpenAI(written, always=EMPTY) as silent:
        engine = ToyEngine()
        with pytest.raises(UsageError, match="answers with nothing; accepted: a model that writes"):
            levers_for(configured(silent), engine)
        assert engine.calls == 0


def test_trials_draw_their_way_and_what_needs_a_proposer_is_left_out_without_one(tmp_path: Path) -> None:
    flags = {"task": "toy", "trials": 8, "schedules": ["p"], "max_rounds": 1, "sampler": "random", "seed": 3}
    search = {"prompt.way": ["choice", "fewshot", "knn", "gepa"]}
    small = {f"prompt.{k}": v for k, v in SMALL.items()}
    config = load_config(flags=flags, overrides={**small, "search": search})
    report = sweep(
        config, toy_task(), ToyEngine(), tmp_path,
        levers=lambda p, w: {"prompt": PromptLever(p), "weights": ToyWeightLever(ToyWeightSettings())},
    )  # fmt: skip
    drawn = {pulled.notes.way for pulled in report.prompt_rounds}
    assert "choice" in drawn
    assert len(drawn) > 1
    assert any("leaves out gepa" in note for note in report.notes)


def test_a_proposer_in_this_process_is_not_probed(tmp_path: Path) -> None:
    """It is there, and a small model would write until it is cut short."""
    config, engine = (
        load_config(flags={"task": "t"}, overrides={"prompt.way": "copro", "proposer.model": "policy"}),
        ToyEngine(),
    )
    levers_for(config, engine)  # type: ignore[arg-type]
    assert engine.calls == 0
