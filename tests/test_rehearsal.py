"""The prompt lever's rollouts: as an evaluation's, seen to go on, and ended when nobody waits for them any more."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted_openai import ScriptedOpenAI
from test_prompt_ways import SMALL, WAYS, lever_of, pull, written
from toy import Adder, ToyEngine, toy_task

from colever.config import PromptSettings
from colever.errors import InfrastructureError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.prompt_lever import train_rows
from colever.optimizers.rehearsal import Rehearsal

WIDTH = 2


class Narrow(ToyEngine):
    """Answers two rollouts at once; ``then`` is called with the number of calls."""

    concurrency = WIDTH

    def __init__(self, then: Any = lambda calls: None) -> None:
        super().__init__()
        self.then = then

    def complete(self, request: Any) -> Any:
        self.then(self.calls)
        return super().complete(request)


class Seen:
    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, total: int, text: str) -> None:
        self.done.append(done)


def rehearsal(folder: Path, engine: ToyEngine, progress: Any = None) -> Rehearsal:
    task = toy_task()
    return Rehearsal(task.base_candidate(), task, engine, Budget(), 0, folder, progress)  # type: ignore[arg-type]


def test_a_batch_is_seen_to_go_on(tmp_path: Path) -> None:
    seen = Seen()
    made = rehearsal(tmp_path, Narrow(), seen)
    ids = list(made._examples)[:20]
    made.mean(made.parent.prompts, ids[:12])
    made.mean(made.parent.prompts, ids)
    assert seen.done == list(range(1, 21))


def test_a_pull_that_is_interrupted_asks_no_further(tmp_path: Path) -> None:
    def then(calls: int) -> None:
        if calls == 6:  # as the prompt lever does where Ctrl-C reaches it, and not the thread that runs the batch
            made.failed = KeyboardInterrupt()

    engine = Narrow(then)
    made = rehearsal(tmp_path, engine)
    with pytest.raises(KeyboardInterrupt):
        made.mean(made.parent.prompts, list(made._examples))
    assert engine.calls <= 6 + 2 * WIDTH


@pytest.mark.parametrize("times", [2, 3])
def test_one_failure_of_the_machine_in_a_small_batch_is_tried_again(times: int, tmp_path: Path) -> None:
    """Three attempts in all; the others' answers stay."""
    broken: list[int] = []

    def then(calls: int) -> None:
        if calls >= 3 and len(broken) < times:
            broken.append(calls)
            raise ConnectionError("the line is down")

    engine = Narrow(then)
    engine.concurrency = 1
    made = rehearsal(tmp_path, engine)
    ids = list(made._examples)[:4]
    if times == 2:
        assert len(made.run(made.parent.prompts, ids)) == 4
        assert engine.calls == 4
        return
    with pytest.raises(InfrastructureError, match=r"1 rollouts .* in 3 attempts; the last: .*the line is down"):
        made.run(made.parent.prompts, ids)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.rpartition(":")[2])
def test_the_score_on_train_is_what_an_evaluation_gives(way: str, tmp_path: Path) -> None:
    """A rollout does not see the loop that asked for it; dspy.ReAct shows its model a traceback, which would tell."""
    found: list[Any] = []

    class Looking(Adder):
        def forward(self, question: str) -> dspy.Prediction:
            found.append((list(dspy.settings.callbacks), dspy.settings.max_errors))
            return super().forward(question)

    with ScriptedOpenAI(written) as server:
        made = pull(lever_of(way, server), tmp_path, program=Looking)
    scored = [example for _, example in train_rows(PromptSettings(**SMALL), toy_task(), random.Random(3)).scored]
    again = evaluate(made.candidate, toy_task(dev=scored), ToyEngine(), "dev")  # type: ignore[arg-type]
    assert made.notes["selected"]["child"] == pytest.approx(again.score)
    assert all(settings == ([], dspy.settings.max_errors) for settings in found)
