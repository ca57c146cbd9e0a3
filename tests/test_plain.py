"""What is kept of values that no JSON holds: bounded, told in words, and the rollout scored as it is."""

from __future__ import annotations

import json
from typing import Any

import dspy
from pydantic import BaseModel
from test_rollout import run

from colever.pipelines.plain import DEEPEST, plain


class Untold:
    def __str__(self) -> str:
        raise ValueError("no")


class Node(BaseModel):
    next: Node | None = None


class Odd(dspy.Module):
    """Makes what no JSON holds of its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer: int")

    def forward(self, question: str) -> dspy.Prediction:
        answer = self.first(question=question).answer
        deep: list[Any] = []
        for _ in range(50_000):
            deep = [deep]
        own, node = [answer], Node()
        own.append(own)
        node.next = node
        return dspy.Prediction(answer=answer, deep=deep, own=own, node=node, untold=Untold(), keys={Untold(): 1})


def test_outputs_that_json_cannot_hold_are_told_in_words_and_scored_as_they_are() -> None:
    rollouts = run(dspy.utils.DummyLM({"": {"answer": "1"}}), Odd(), samples=1)
    assert [r.failure for r in rollouts] == [None] * 6
    assert [r.score.total for r in rollouts] == [1.0, 0, 0, 0, 0, 0]  # type: ignore[union-attr]
    kept = rollouts[0].outputs
    text = json.dumps(kept)
    assert text.count("[", text.index('"deep"'), text.index('"own"')) == DEEPEST
    assert "(list, nested too deep)" in text
    assert kept["own"] == [1, "(list that holds itself)"]
    assert kept["node"] == "(Node that cannot be shown: ValueError)"
    assert kept["untold"] == "(Untold that cannot be shown: ValueError)"
    assert kept["keys"] == {"(Untold that cannot be shown: ValueError)": 1}
    shared = [1]
    assert plain([shared, {"again": shared}]) == [[1], {"again": [1]}]  # twice is not inside itself
