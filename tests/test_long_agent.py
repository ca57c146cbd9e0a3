"""An agent of tens of tool calls in an environment with state: its history is paid for once, not once per call."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import dspy
import pytest
from conftest import write_follower
from dspy.utils.exceptions import AdapterParseError
from test_program_shapes import ACT, Digit, Watch, pull

from colever.engines.lm import open_engine
from colever.optimizers.grpo import ProgramTrainer

seen: ContextVar[list[str]] = ContextVar("seen")


def look() -> str:
    """Look around; the environment remembers it."""
    seen.get().append("look")
    return f"things seen so far: {len(seen.get())}"


class Explorer(dspy.Module):
    """DSPy's ReAct with up to 40 calls; where it cannot say its answer, it is what the environment counted."""

    def __init__(self) -> None:
        super().__init__()
        self.react = dspy.ReAct(Digit, tools=[look], max_iters=40)

    def forward(self, word: str) -> dspy.Prediction:
        seen.set([])
        with suppress(AdapterParseError):
            self.react(word=word)
        return dspy.Prediction(answer=len(seen.get()))


def looked(example: dspy.Example, prediction: dspy.Prediction, steps: object) -> float:
    return prediction.answer / 40


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory):
    """A model that nearly always calls the tool, whoever asks: half its rollouts pass thirty calls, on any machine."""
    look_up, finish, digit = ACT.format("look"), ACT.format("finish"), "7"
    follows = {"\n": {look_up: 0.994, finish: 0.003, digit: 0.003}}
    follows |= {word: {"<|im_end|>": 1.0} for word in (look_up, finish, digit)}
    path: Path = tmp_path_factory.mktemp("explorer")
    return open_engine(write_follower(path, follows, (look_up, finish), 16384))


def test_a_long_history_is_sampled_and_trained_once(explorer, tmp_path, monkeypatch):
    watch, parts = Watch(monkeypatch, explorer), []
    train_part = ProgramTrainer._train_part

    def watched(trainer, model, rows, *args):
        before = trainer.computed_tokens
        loss = train_part(trainer, model, rows, *args)
        parts.append(trainer.computed_tokens - before)
        return loss

    monkeypatch.setattr(ProgramTrainer, "_train_part", watched)
    before = explorer.meter
    done = pull(explorer, tmp_path, Explorer, looked, updates=1, batch_tokens=1024, grouping="trajectory")
    spent = (explorer.meter - before).prompt_tokens
    rows = watch.batches[0].rows
    calls = Counter((r.group[0], r.sample) for r in rows)
    assert max(calls.values()) > 30
    each_call_alone = sum(len(p) for sampled in watch.sampled for p, _ in sampled.elements())
    longest = max(len(r.prompt_ids) for r in rows)
    once = tokens_once([r.prompt_ids for r in rows]) + sum(len(r.completion_ids) for r in rows)
    assert spent < 0.1 * each_call_alone
    assert sum(parts) < 0.2 * sum(len(r.prompt_ids) + len(r.completion_ids) for r in rows)
    assert sum(parts) <= 3 * once
    assert max(parts) <= max(1024, 2 * longest + 10)  # what has to fit into memory at once
    assert max(v for _, v in done.metrics["logprob_gap"]) < 1e-4


def tokens_once(prompts: list[tuple[int, ...]]) -> int:
    """How many different beginnings the prompts have: what a tree of them holds."""
    ordered, count, before = sorted(set(prompts)), 0, ()
    for prompt in ordered:
        same = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
        count += len(prompt) - same
        before = prompt
    return count
