"""Both levers on an agent: every way of the prompt lever, and a weight lever that trains what was sampled."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
from agents import SYSTEM, ask, task_on, write_caller
from conformance import LeverConformance
from scripted_openai import ScriptedOpenAI
from standin_vllm import StandIn
from test_agent import adds, three_turns
from test_program_shapes import Watch
from test_prompt_ways import SMALL, written
from toy import BAD, GOOD, ToyEngine, toy_task

from colever.config import PROMPT_WAYS, WRITTEN_WAYS, PromptSettings, ProposerSettings, WeightSettings
from colever.engines.lm import open_engine
from colever.engines.vllm_server import Serving
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.optimizers.weight_lever import WeightLever
from colever.pipelines.agent import agent_program
from colever.tasks.load import load_task
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt, Weights

EXAMPLE = f"{Path(__file__).parent.parent / 'examples' / 'plain_agent.py'}:task"
HOW: dict[str, Any] = {"updates": 2, "examples_per_update": 2, "group_size": 6, "learning_rate": 1e-4, "warmup": 0}


def solves(connection: Any, question: str) -> str:
    said = ask(connection, question, system="Solve it.").content
    return re.sub(r"\[\[.*?\]\]", "", said).strip()


def toy_agent(**changes: Any) -> Task:
    """The toy task, asked by an agent."""
    fields: dict[str, Any] = {"program": agent_program(solves, "Solve it."), "instructions": {"agent": (BAD, GOOD)}}
    return toy_task(**{**fields, **changes})


@pytest.fixture(scope="module")
def server():
    with ScriptedOpenAI(written) as running:
        yield running


def lever_of(way: str, server: ScriptedOpenAI) -> PromptLever:
    at = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01, retries=1, input_price=1, output_price=2)
    proposer = open_proposer(at, None) if way in WRITTEN_WAYS else None
    return PromptLever(PromptSettings(**{**SMALL, "way": way}), proposer)


@pytest.mark.parametrize("way", PROMPT_WAYS)
class TestEveryWay(LeverConformance):
    """As of every lever on a DSPy program; an agent is asked in words here."""

    @pytest.fixture
    def engine(self) -> ToyEngine:
        return ToyEngine()

    @pytest.fixture(autouse=True)
    def _way(self, way: str, server: ScriptedOpenAI) -> None:
        self.way, self.server = way, server

    def lever(self) -> PromptLever:
        return lever_of(self.way, self.server)

    def task(self, **changes: Any) -> Task:
        return toy_agent(**changes)


@pytest.mark.parametrize("way", [way for way in PROMPT_WAYS if way != "copro"])
def test_a_way_finds_what_helps_an_agent(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    task, engine = toy_agent(), ToyEngine()
    base = task.base_candidate()
    child = lever_of(way, server).improve(base, task, engine, Budget(), 3, tmp_path, NullProgress()).candidate
    assert evaluate(child, task, engine).score >= evaluate(base, task, engine).score
    shows = bool(child.prompts["agent"].demos)
    assert shows or child.prompts["agent"].instructions == GOOD
    for demo in child.prompts["agent"].demos:
        assert demo["messages"][-1]["role"] == "user"
        assert demo["reply"]["role"] == "assistant"


# --- weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory):
    return open_engine(write_caller(tmp_path_factory.mktemp("caller")))


def called(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> float:
    return min(1.0, len(steps) / 4)


def pull(engine: Any, folder: Path, task: Task, parent: Candidate | None = None, **changes: Any) -> Pull:
    engine.load(Weights())
    lever = WeightLever(WeightSettings(**{**HOW, **changes}))
    return lever.improve(parent or task.base_candidate(), task, engine, Budget(), 1, folder, NullProgress())


@pytest.mark.parametrize("adapters", ["shared", "per_predictor"])
def test_what_is_trained_is_what_was_sampled(caller, tmp_path, monkeypatch, adapters) -> None:
    how = {} if adapters == "shared" else {"adapters": adapters, "peft": "lora"}
    watch = Watch(monkeypatch, caller)
    done = pull(caller, tmp_path, task_on(adds, check=called), **how)
    for batch, sampled, trained in zip(watch.batches, watch.sampled, watch.trained, strict=True):
        assert trained == Counter((r.prompt_ids, r.completion_ids) for r in batch.rows)
        assert trained.total() > 0
        assert not trained - sampled
        assert sampled.total() == batch.total_rows
        assert set(batch.completion_tokens) == {"agent"}
        assert max(Counter((r.group[0], r.sample) for r in batch.rows).values()) > 1  # several calls of a run
    assert max(v for _, v in done.metrics["logprob_gap"]) < 1e-4
    assert "drifted_calls" not in done.metrics
    assert done.notes["alarms"] == []


def test_what_a_server_sampled_is_trained_too(tmp_path, monkeypatch) -> None:
    """As with ``--engine vllm``: agent, endpoint, engine and server, each over HTTP."""
    checkpoint = write_caller(tmp_path / "checkpoint")
    with StandIn(open_engine(checkpoint)) as server:
        engine = open_engine(checkpoint, serving=Serving(url=server.url))
        done = pull(engine, tmp_path / "pull", task_on(adds, check=called), peft="lora")
    assert done.candidate.weights.kind == "lora"
    assert max(v for _, v in done.metrics["logprob_gap"]) < 1e-3
    assert "drifted_calls" not in done.metrics
    assert sum(rows for _, rows in done.metrics["trained_rows"]) > 0


def test_drifted_calls_are_counted_and_trained(caller, tmp_path, monkeypatch) -> None:
    def forgets(connection: Any, question: str) -> str:
        client, messages = connection.client(), [{"role": "system", "content": SYSTEM}]
        for turn in range(3):
            messages.append({"role": "user", "content": f"{question} {turn}"})
            said = client.chat.completions.create(model="any", messages=messages).choices[0].message.content
            messages.append({"role": "assistant", "content": f"in short: {said[:1]}"})
        return said

    def digit(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> float:
        return float(prediction.answer == "5")

    watch = Watch(monkeypatch, caller)
    done = pull(caller, tmp_path, task_on(forgets, check=digit), updates=1)
    assert done.metrics["drifted_calls"] == [(0, 24.0)]  # two of three, in 12 rollouts
    assert watch.trained[0] == Counter((r.prompt_ids, r.completion_ids) for r in watch.batches[0].rows)
    assert max(v for _, v in done.metrics["logprob_gap"]) < 1e-4


def test_prompts_are_folded_into_weights(caller, tmp_path, monkeypatch) -> None:
    task = task_on(adds, check=called)
    demo = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "reply": {"role": "assistant", "content": "5"}}
    parent = Candidate({"agent": PredictorPrompt("Take your time and add.", (demo,))})
    watch = Watch(monkeypatch, caller)
    done = pull(caller, tmp_path, task, parent, fold=True)
    for batch, sampled, trained in zip(watch.batches, watch.sampled, watch.trained, strict=True):
        assert trained == Counter((r.prompt_ids, r.completion_ids) for r in batch.rows)
        assert trained.total() > 0
        assert not {p for p, _ in trained} & {p for p, _ in sampled}
        assert {c for _, c in trained} <= {c for _, c in sampled}
        for prompt, _ in trained:
            read = caller.tokenizer.decode(prompt)
            assert SYSTEM in read
            assert "2 + 3" not in read
    tokens = done.notes["prompt_tokens"]
    assert 0 < tokens["after"] < tokens["before"]


class TestWeightLever(LeverConformance):
    @pytest.fixture(scope="class")
    def engine(self):
        return open_engine("seed")

    def lever(self) -> WeightLever:
        return WeightLever(WeightSettings(**HOW))

    def task(self, **changes: Any) -> Task:
        return dataclasses.replace(task_on(three_turns), **changes)


def test_the_examples_wording_helps_the_seed_model(tmp_path: Path) -> None:
    """The bundled example; what weights do for it is in ``tests/slow``."""
    engine, task = open_engine("seed"), load_task(EXAMPLE)
    task = dataclasses.replace(task, dev=task.dev[:48])
    base = evaluate(task.base_candidate(), task, engine)
    assert 0.1 < base.gold < 0.9
    prompts = PromptLever(PromptSettings(way="instructions", candidates=0, screen=32, examples=32))
    made = prompts.improve(task.base_candidate(), task, engine, Budget(), 0, tmp_path, NullProgress()).candidate
    assert made.prompts["agent"].instructions == task.instructions["agent"][0]
    assert evaluate(made, task, engine).score > base.score
