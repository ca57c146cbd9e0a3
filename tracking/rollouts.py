"""Kept rollouts in the terminal: what each predictor read and wrote, and the score. Knows rich; computes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from colever.samples import SampledRollout, SampledStep


def render(rollouts: Sequence[SampledRollout], prompts: bool = False) -> RenderableType:
    """One block for each rollout; with ``prompts``, what the model read, too. Nothing from data is read as markup."""
    return Group(*(part for rollout in rollouts for part in _block(rollout, prompts)))


def score_text(rollout: SampledRollout) -> str:
    """``score 0.75 (answer 1, format 0.5), gold 1``, or why there is none."""
    if rollout.total is None:
        return f"no score: {rollout.reason}"
    criteria = ", ".join(f"{name} {value:.3g}" for name, value in rollout.by_criterion.items())
    gold = "" if rollout.gold is None else f", gold {rollout.gold:.3g}"
    return f"score {rollout.total:.3g} ({criteria}){gold}" if criteria else f"score {rollout.total:.3g}{gold}"


def step_text(step: SampledStep) -> str:
    """``solve: 180 → 25 tokens``, and how it failed."""
    ended = ", cut off" if step.finish_reason == "length" else ""
    failed = ", could not be parsed" if step.failed else ""
    name = step.predictor or "a predictor made on the way"
    return f"{name}: {step.prompt_tokens} → {step.completion_tokens} tokens{ended}{failed}"


def by_turns(prompt: str) -> str:
    """A prompt with a line break between two of its template's signs: each turn of the chat begins on a line."""
    return re.sub(r"(<\|[^|<>]+\|>)(?=<\|)", "\\1\n", prompt)


def field_text(value: Any) -> str:
    """A field's value as a person reads it: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _block(rollout: SampledRollout, prompts: bool) -> Iterator[RenderableType]:
    yield Text.assemble((rollout.example_id, "bold cyan"), f" · {score_text(rollout)}")
    yield _fields("", rollout.inputs)
    yield _fields("expected ", rollout.expected)
    for step in rollout.steps:
        yield Padding(Text(step_text(step), style="bold" if not step.failed else "bold red"), (0, 0, 0, 2))
        if prompts:
            yield Padding(Text(by_turns(step.prompt.strip()), style="dim"), (0, 0, 0, 4))
        yield Padding(Text(step.completion.strip()), (0, 0, 0, 4))
    yield _fields("→ ", rollout.outputs)
    if rollout.failure and rollout.total is not None:
        yield Padding(Text(f"failed: {rollout.reason}", style="red"), (0, 0, 0, 2))
    if rollout.feedback and rollout.feedback != rollout.reason:
        yield Padding(Text(rollout.feedback, style="dim"), (0, 0, 0, 2))
    yield Text()


def _fields(before: str, values: Mapping[str, Any]) -> RenderableType:
    lines = [Text.assemble((f"{before}{name}: ", "dim"), field_text(value)) for name, value in values.items()]
    return Padding(Group(*lines), (0, 0, 0, 2))
