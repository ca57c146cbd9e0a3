"""A predictor's prompt as text that a person reads, and what changed between two. Knows prompts; no terminal, no HTML.

The text has what the model is given, field by field; how an adapter lays it out for the model is not in it (a kept
rollout has that: ``colever rollouts --prompts``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from colever.tracking.rollouts import field_text
from colever.types import PredictorPrompt

LONG = 80  # characters: a longer line is compared sentence by sentence
SENTENCE = re.compile(r"(?<=[.!?;:]) +")
Prompts = Mapping[str, PredictorPrompt]


def prompt_text(prompt: PredictorPrompt) -> str:
    """The instruction, then each demo's fields as a block that Markdown, in which MLflow shows it, leaves as it is.

    Demos have no numbers, so that one more changes no other.
    """
    parts = [prompt.instructions]
    if prompt.demos:
        parts.append(f"[demos: {demos_text(prompt)}]")
    parts += ["\n".join(_field(name, value) for name, value in demo.items()) for demo in prompt.demos]
    return "\n\n".join(parts)


def demos_text(prompt: PredictorPrompt) -> str:
    """How many there are, and how many of them a call shows where that is not all: ``32, nearest 4``."""
    return f"{len(prompt.demos)}, nearest {prompt.nearest}" if prompt.nearest else str(len(prompt.demos))


def changes(before: Prompts, after: Prompts, names: tuple[str, str]) -> dict[str, list[str]]:
    """Each predictor's lines of a unified diff, none where its prompt is the same. ``names`` are of both sides."""
    found = {}
    for predictor in dict.fromkeys([*before, *after]):
        old, new = (_lines(prompts.get(predictor)) for prompts in (before, after))
        one, other = (f"{predictor} ({name})" for name in names)
        found[predictor] = list(difflib.unified_diff(old, new, one, other, lineterm=""))
    return found


def diff_text(before: Prompts, after: Prompts, names: tuple[str, str]) -> str:
    """The diffs of all predictors one after another, with a line for each that is the same."""
    parts = [
        "\n".join(lines) if lines else f"# {predictor}: the same"
        for predictor, lines in changes(before, after, names).items()
    ]
    return "\n".join(parts) + "\n"


def in_markdown(prompts: Prompts, tokens: Mapping[str, float], before: Mapping[str, float]) -> str:
    """Every prompt in a fence that nothing in it can close, below what it costs a call and what its parent's did."""
    parts = []
    for predictor, prompt in prompts.items():
        text = prompt_text(prompt)
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
        parts.append(f"## {predictor}\n\n{cost_text(predictor, tokens, before)}\n\n{fence}text\n{text}\n{fence}\n")
    return "\n".join(parts)


def cost_text(predictor: str, tokens: Mapping[str, float], before: Mapping[str, float], name: str = "before") -> str:
    """``180.0 prompt tokens a call (before 53.0, × 3.40)``."""
    now, then = tokens.get(predictor), before.get(predictor)
    if now is None:
        return "prompt tokens of a call: not counted"
    than = f" ({name} {then:,.1f}, × {now / then:.2f})" if then else ""
    return f"{now:,.1f} prompt tokens a call{than}"


def kind_of(line: str) -> str:
    """What a diff's line is: ``head``, ``place``, ``add``, ``cut``, or nothing for one that both sides have."""
    for start, kind in (("+++ ", "head"), ("--- ", "head"), ("@@", "place"), ("#", "head"), ("+", "add"), ("-", "cut")):
        if line.startswith(start):
            return kind
    return ""


def _lines(prompt: PredictorPrompt | None) -> Sequence[str]:
    if prompt is None:
        return ()
    lines = prompt_text(prompt).splitlines()
    return [part for line in lines for part in (SENTENCE.split(line) if len(line) > LONG else [line])]


def _field(name: str, value: Any) -> str:
    """Further lines are indented more: they are the field's, not the next one."""
    return f"    {name}: " + field_text(value).replace("\n", "\n      ")
