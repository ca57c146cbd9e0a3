"""Programs of any shape through the real lever: loops, branches, shared signatures, an agent with a tool.

For each, what reaches the loss is compared with what the engine sampled, token id by token id.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dspy
import pytest
import torch
from conftest import write_follower

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.grpo import ProgramTrainer
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.trajectories import TrainingBatch
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Weights

ACT = "[[ ## next_thought ## ]]\nhm\n\n[[ ## next_tool_name ## ]]\n{}\n\n[[ ## next_tool_args ## ]]\n{{}}"


class Digit(dspy.Signature):
    """Say a digit."""

    word: str = dspy.InputField()
    answer: int = dspy.OutputField()


class Loop(dspy.Module):
    """Asks the same predictor until it says 5 or more, at most four times."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict(Digit)

    def forward(self, word: str) -> dspy.Prediction:
        for turn in range(4):
            answer = self.say(word=f"{word} {turn}").answer
            if answer >= 5:
                break
        return dspy.Prediction(answer=answer)


class Twins(dspy.Module):
    """Two predictors of one signature class, always both."""

    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict(Digit)
        self.two = dspy.Predict(Digit)

    def forward(self, word: str) -> dspy.Prediction:
        first = self.one(word=word).answer
        return dspy.Prediction(answer=(first + self.two(word=word).answer) // 2)


class Branch(dspy.Module):
    """An odd digit goes to one predictor, an even one to another, 0 to none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(Digit)
        self.odd = dspy.Predict(Digit)
        self.even = dspy.Predict(Digit)

    def forward(self, word: str) -> dspy.Prediction:
        draft = self.first(word=word).answer
        if draft == 0:
            return dspy.Prediction(answer=0)
        return dspy.Prediction(answer=(self.odd if draft % 2 else self.even)(word=f"{word} {draft}").answer)


class Agent(dspy.Module):
    """DSPy's own ReAct with one tool."""

    def __init__(self) -> None:
        super().__init__()
        self.react = dspy.ReAct(Digit, tools=[look], max_iters=3)

    def forward(self, word: str) -> dspy.Prediction:
        return self.react(word=word)


def look() -> str:
    """Look something up."""
    return "nothing"


def size(example: dspy.Example, prediction: dspy.Prediction, steps: object) -> float:
    return prediction.answer / 9


def write_actor(path: Path) -> Path:
    """A checkpoint that writes a tool call, an end of tool calls or an answer, whoever asks; see ``write_follower``."""
    look_up, finish, answer = (
        ACT.format("look"),
        ACT.format("finish"),
        "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]",
    )
    follows = {"\n": {look_up: 0.4, finish: 0.2, answer: 0.4}, look_up: {"<|im_end|>": 1.0}}
    follows |= {finish: {"<|im_end|>": 1.0}, answer: dict.fromkeys("3579", 0.25)}
    return write_follower(path, follows | {d: {"<|im_end|>": 1.0} for d in "3579"}, (look_up, finish, answer), 8192)


PROGRAMS: dict[str, tuple[type[dspy.Module], set[str]]] = {
    "loop": (Loop, {"say"}),
    "twins": (Twins, {"one", "two"}),
    "branch": (Branch, {"first", "odd", "even"}),
    "agent": (Agent, {"react.react", "react.extract.predict"}),
}


@pytest.fixture(scope="module")
def engines(talker_checkpoint, tmp_path_factory):
    talker, actor = open_engine(talker_checkpoint), open_engine(write_actor(tmp_path_factory.mktemp("actor")))
    return {"agent": actor} | dict.fromkeys(("loop", "twins", "branch"), talker)


class Watch:
    """What the engine sampled and what reached the loss, as (prompt ids, completion ids), update by update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine) -> None:
        self.sampled: list[Counter] = []
        self.trained: list[Counter] = []
        self.batches: list[TrainingBatch] = []
        step, compute, generate = ProgramTrainer.training_step, ProgramTrainer._compute_loss, engine.generate

        def training_step(trainer, *args):
            self.sampled.append(Counter())
            self.trained.append(Counter())
            ask = trainer._sample
            trainer._sample = lambda update: self.batches.append(ask(update)) or self.batches[-1]
            try:
                return step(trainer, *args)
            finally:
                trainer._sample = ask

        def compute_loss(trainer, model, inputs):
            parts = [inputs[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
            for p, seen, c, real in zip(*parts, strict=True):
                self.trained[-1][tuple(p[seen.bool()].tolist()), tuple(c[real.bool()].tolist())] += 1
            return compute(trainer, model, inputs)

        def generated(requests, *args):
            made = generate(requests, *args)
            self.sampled[-1].update((c.prompt_ids, c.completion_ids) for c in made)
            return made

        monkeypatch.setattr(ProgramTrainer, "training_step", training_step)
        monkeypatch.setattr(ProgramTrainer, "_compute_loss", compute_loss)
        monkeypatch.setattr(engine, "generate", generated)


def pull(engine, workdir: Path, program: type[dspy.Module], check=size, **changes) -> Pull:
    engine.load(Weights())
    examples = [dspy.Example(word=f"w{i}").with_inputs("word") for i in range(4)]
    task = Task("shapes", program, examples, examples, examples, Rubric([Criterion("size", check)]), max_tokens=12)
    how = {"updates": 2, "examples_per_update": 2, "group_size": 6, "learning_rate": 1e-4, "warmup": 0} | changes
    return WeightLever(WeightSettings(**how)).improve(
        task.base_candidate(), task, engine, Budget(), 1, workdir, NullProgress()
    )


@pytest.mark.parametrize("grouping", ["predictor", "trajectory"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_trained_is_what_was_sampled(engines, tmp_path, monkeypatch, name, grouping):
    engine, (program, predictors) = engines[name], PROGRAMS[name]
    watch = Watch(monkeypatch, engine)
    done = pull(engine, tmp_path, program, grouping=grouping)
    assert len(watch.batches) == 2
    for batch, sampled, trained in zip(watch.batches, watch.sampled, watch.trained, strict=True):
        assert trained == Counter((r.prompt_ids, r.completion_ids) for r in batch.rows)
        assert trained.total() > 0
        assert not trained - sampled
        assert sampled.total() == batch.total_rows
        assert set(batch.completion_tokens) == predictors
        for key in {r.group for r in batch.rows}:
            members = [r for r in batch.rows if r.group == key]
            assert len({r.reward for r in members}) > 1
            if grouping == "predictor":
                assert len({r.sample for r in members}) == len(members)  # a rollout is in it once
                assert sum(r.advantage for r in members) == pytest.approx(0, abs=1e-9)
    assert max(v for _, v in done.metrics["logprob_gap"]) < 1e-4
    assert done.notes["alarms"] == []
    if name != "twins":
        calls = {len([r for r in b.rows if r.sample == s and r.group[0] == e]) for b in watch.batches
                 for e, s in {(r.group[0], r.sample) for r in b.rows}}  # fmt: skip
        assert len(calls) > 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_weights_move(engines, tmp_path, name):
    before = {n: p.detach().clone() for n, p in engines[name].model.named_parameters()}
    done = pull(engines[name], tmp_path, PROGRAMS[name][0], updates=1)
    assert done.metrics["trained_rows"][0][1] > 0
    assert any(not torch.equal(before[n], p) for n, p in engines[name].model.named_parameters())


def test_a_loop_is_grouped_by_occurrence(engines, tmp_path, monkeypatch):
    watch = Watch(monkeypatch, engines["loop"])
    pull(engines["loop"], tmp_path, Loop, updates=1, group_size=16)
    groups = Counter(r.group[1:] for r in watch.batches[0].rows)
    assert {("say", 0), ("say", 1), ("say", 2)} <= set(groups)
    assert groups["say", 0] > groups["say", 1] > groups["say", 2]


def test_twins_are_not_mixed_up(engines, tmp_path, monkeypatch):
    """One signature and one prompt, hence equal prompt ids: the groups are still the predictors' own."""
    watch = Watch(monkeypatch, engines["twins"])
    pull(engines["twins"], tmp_path, Twins, updates=1)
    rows = watch.batches[0].rows
    assert {r.group[1] for r in rows} == {"one", "two"}
    prompts = {name: {r.prompt_ids for r in rows if r.group[1] == name} for name in ("one", "two")}
    assert prompts["one"] == prompts["two"]


def test_constant_and_single_groups_are_left_out_and_counted(engines, tmp_path, monkeypatch):
    """Rewards of w0 and w1 alone differ: all groups of the others train nothing."""

    def some(example, prediction, steps) -> float:
        return size(example, prediction, steps) if example.word in ("w0", "w1") else 0.0

    watch = Watch(monkeypatch, engines["loop"])
    done = pull(engines["loop"], tmp_path, Loop, some, updates=1, examples_per_update=4)
    (batch,) = watch.batches
    assert len({r.group[0] for r in batch.rows}) == 2
    assert batch.constant_groups >= 2
    assert watch.trained[0].total() == len(batch.rows) < batch.total_rows == watch.sampled[0].total()
    assert done.metrics["constant_share"][0][1] == batch.constant_groups / batch.groups
