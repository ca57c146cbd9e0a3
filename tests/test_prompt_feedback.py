"""What a proposer is told: the rubric's words, of the step that they concern, and nobody is blamed for another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted_openai import Messages, ScriptedOpenAI
from test_prompt_ways import SMALL, lever_of, pull, written
from toy import ToyEngine

from colever.config import PromptSettings, ProposerSettings
from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.tasks.load import load_task
from colever.tasks.rubric import Criterion, Rubric

KNOWN_FACT = "look up every fact that the question needs"


def records(server: ScriptedOpenAI) -> list[dict[str, Any]]:
    """The examples of all reflections that the server was asked for."""
    found: list[dict[str, Any]] = []
    for body in server.asked:
        last = str(body["messages"][-1]["content"])
        if match := re.search(r"examples_with_feedback ## \]\]\n(\[.*?\])\n\nRespond", last, re.S):
            found += json.loads(match.group(1))
    return found


def test_gepas_reflections_on_lookup_hold_the_rubrics_feedback(tmp_path: Path) -> None:
    """The real program on the seed model: an agent that stops too early, and a reply that can't know it."""
    task, engine = load_task("lookup"), open_engine("seed")
    with ScriptedOpenAI(written) as server:
        proposer = open_proposer(ProposerSettings(model=f"scripted@{server.address}"), engine)
        settings = PromptSettings(**{**SMALL, "way": "gepa", "examples": 8, "rollouts": 40})
        PromptLever(settings, proposer).improve(
            task.base_candidate(), task, engine, Budget(), 0, tmp_path, NullProgress()
        )
        told = records(server)
    acted = [r for r in told if "action" in r["Generated Outputs"]]
    replied = [r for r in told if "answer" in r["Generated Outputs"]]
    assert acted
    assert replied
    assert any(f"this step: found 0.50 ({KNOWN_FACT})" in r["Feedback"] for r in acted)
    assert not any(KNOWN_FACT in r["Feedback"] for r in replied)
    assert any("another step fell short; nothing is known against this one" in r["Feedback"] for r in replied)
    assert all({"question", "notes"} == set(r["Inputs"]) for r in told)


class Two(dspy.Module):
    """Two predictors with one signature: the second one's question is the first one's answer, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(dspy.Signature("question -> answer", "Solve it."))
        self.second = dspy.Predict(dspy.Signature("question -> answer", "Solve it."))

    def forward(self, question: str) -> dspy.Prediction:
        one = self.first(question=question).answer
        return self.second(question="7 + 8" if one else question)


def test_predictors_with_equal_signatures_get_their_own_calls(tmp_path: Path) -> None:
    rubric = Rubric([
        Criterion("never", lambda e, p, s: False, 1, "told to the first alone", "first"),
        Criterion("half", lambda e, p, s: 0.5, 1, "told to the second alone", "second"),
    ])  # fmt: skip
    with ScriptedOpenAI(written) as server:
        pull(lever_of("gepa", server, rollouts=50), tmp_path, program=Two, rubric=rubric, instructions={}, gold=None)
        told = records(server)
    first = [r for r in told if r["Inputs"]["question"] != "7 + 8"]
    second = [r for r in told if r["Inputs"]["question"] == "7 + 8"]
    assert first
    assert second
    assert all("first alone" in r["Feedback"] and "second alone" not in r["Feedback"] for r in first)
    assert all("second alone" in r["Feedback"] and "first alone" not in r["Feedback"] for r in second)


class Unreadable(ToyEngine):
    """The second predictor's reply has no fields."""

    def complete(self, request: Any) -> Any:
        answer = super().complete(request)
        if "7 + 8" not in str(request.messages[-1]):
            return answer
        from dataclasses import replace

        from dspy import lm15

        return replace(answer, message=lm15.Message.assistant([lm15.TextPart("I would say fifteen.")]))


def test_a_reply_that_cannot_be_read_is_told_to_its_step_alone(tmp_path: Path) -> None:
    rubric = Rubric([Criterion("any", lambda e, p, s: True)])
    with ScriptedOpenAI(written) as server:
        pull(
            lever_of("gepa", server, rollouts=50), tmp_path, Unreadable(), program=Two, rubric=rubric,
            instructions={}, gold=None,
        )  # fmt: skip
        told = records(server)
    failed = [r for r in told if isinstance(r["Generated Outputs"], str)]
    others = [r for r in told if not isinstance(r["Generated Outputs"], str)]
    assert failed
    assert others
    assert all("I would say fifteen." in r["Generated Outputs"] for r in failed)
    assert all("its reply lacks the fields asked for (answer)" in r["Feedback"] for r in failed)
    assert all("The run failed at another step; nothing is known against this one" in r["Feedback"] for r in others)


@pytest.mark.parametrize("way", ["simba"])
def test_simba_reads_the_rubrics_words(way: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def script(messages: Messages) -> str:
        asked.append(str(messages[-1]["content"]))
        return written(messages)

    task, engine = load_task("lookup"), open_engine("seed")
    with ScriptedOpenAI(script) as server:
        proposer = open_proposer(ProposerSettings(model=f"scripted@{server.address}"), engine)
        settings = PromptSettings(**{**SMALL, "way": way, "demos": 0, "candidates": 8, "screen": 16, "examples": 24})
        PromptLever(settings, proposer).improve(
            task.base_candidate(), task, engine, Budget(), 0, tmp_path, NullProgress()
        )
    assert asked
    assert any(KNOWN_FACT in text for text in asked)
