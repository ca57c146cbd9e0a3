"""What an agent's request costs beside the model: processor time per call of rollouts whose engine answers at once.

    python benchmarks/agents.py

The same question is asked by a DSPy predictor, by an agent on a client that it was handed, and by one that makes a
client of its own for every run, as agents do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import dspy
import openai
from dspy import lm15

from colever.engines.lm import engine_lm
from colever.pipelines.agent import agent_program
from colever.pipelines.rollout import run_rollouts
from colever.types import Score

SYSTEM = "Answer it."


class AtOnce:
    """An engine that says the same of everything."""

    name = "at-once"

    def __deepcopy__(self, memo: dict[int, Any]) -> AtOnce:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        said = lm15.Message.assistant([lm15.TextPart("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]")])
        usage = lm15.Usage(input_tokens=9, output_tokens=9)
        return lm15.Response(id=None, model=request.model, message=said, finish_reason="stop", usage=usage)


class Predictor(dspy.Module):
    """``calls`` calls of one predictor."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls, self.answer = calls, dspy.Predict(dspy.Signature("question -> answer", SYSTEM))

    def forward(self, question: str) -> dspy.Prediction:
        for call in range(self.calls):
            made = self.answer(question=f"{question} {call}")
        return made


def agent(calls: int, client_of: Callable[[Any], Any]) -> dspy.Module:
    """The same as a conversation of an agent's."""

    def run(connection: Any, question: str) -> str:
        client, messages = client_of(connection), [{"role": "system", "content": SYSTEM}]
        for call in range(calls):
            messages.append({"role": "user", "content": f"{question} {call}"})
            messages.append(client.chat.completions.create(model="any", messages=messages).choices[0].message)
        return str(messages[-1].content)

    return agent_program(run, SYSTEM)()


def own(connection: Any) -> Any:
    return openai.OpenAI(base_url=connection.base_url, api_key=connection.api_key)


def milliseconds(program: dspy.Module, rollouts: int, calls: int, width: int) -> float:
    """Processor time of this process, per call."""
    rows = [(str(i), dspy.Example(question=f"Is it {i}?").with_inputs("question")) for i in range(rollouts)]
    before = time.process_time()
    run_rollouts(
        program, rows, lm=engine_lm(AtOnce()), score=lambda e, p, s: Score(1.0, {}), fail=lambda r: Score(0.0, {}),  # type: ignore[arg-type]
        concurrency=width,
    )  # fmt: skip
    return 1000 * (time.process_time() - before) / (rollouts * calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    given = parser.parse_args()
    print(f"{'calls':>5}  {'DSPy':>8}  {'handed':>8}  {'own':>8}   ms per call, best of three")
    for calls in (1, 4):
        programs = Predictor(calls), agent(calls, lambda c: c.client()), agent(calls, own)
        best = [min(milliseconds(p, given.rollouts, calls, given.width) for _ in range(3)) for p in programs]
        print(f"{calls:>5}  " + "  ".join(f"{value:8.2f}" for value in best))


if __name__ == "__main__":
    main()
