"""A candidate's prompts in the terminal and as JSON: per predictor what the model is given, its cost, what changed.

Knows rich; computes nothing. Nothing from data is read as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from colever.prompt_notes import PromptNotes
from colever.reported import NamedPrompts
from colever.tracking.prompt_text import changes, cost_text, demos_text, kind_of, prompt_text
from colever.tracking.report import share
from colever.types import RoundRecord

STYLES = {"head": "bold", "place": "cyan", "add": "green", "cut": "red", "": ""}


def render(shown: NamedPrompts, other: NamedPrompts | None) -> RenderableType:
    """The prompts of each predictor, then the diff from ``other``'s."""
    parts = [*_head(shown), *_prompts(shown, other)]
    return Group(*parts, *(_diff(shown, other) if other is not None else ()))


def to_json(shown: NamedPrompts, other: NamedPrompts | None) -> dict[str, Any]:
    """Prompts as a candidate has them, tokens null where they were not counted; the diff by predictor, "" if none."""
    prompts = {
        name: {**prompt.to_json(), "nearest": prompt.nearest, "prompt_tokens": shown.prompt_tokens.get(name)}
        for name, prompt in shown.candidate.prompts.items()
    }
    compared = None
    if other is not None:
        diff = {name: "\n".join(lines) for name, lines in _changes(shown, other).items()}
        tokens = {name: other.prompt_tokens.get(name) for name in other.candidate.prompts}
        compared = {"round": other.name, "candidate": other.candidate.digest, "prompt_tokens": tokens, "diff": diff}
    return {
        "study": shown.study,
        "round": shown.name,
        "candidate": shown.candidate.digest,
        "weights": shown.candidate.weights.digest,
        "prompts": prompts,
        "against": compared,
    }


def round_text(record: RoundRecord) -> str:
    """``prompt lever, way choice: labelled demos; dev score 64.8 % → 76.2 %, kept``."""
    notes = PromptNotes.of(record) if record.lever == "prompt" else PromptNotes("", "")
    way = f", way {notes.way}" if notes.way else ""
    chosen = f": {notes.chosen}" if notes.chosen else ""
    kept = "kept" if record.accepted else "not kept"
    gain = f"dev score {share(record.before.score)} → {share(record.after.score)}"
    return f"{record.lever} lever{way}{chosen}; {gain}, {kept}"


def _head(shown: NamedPrompts) -> Iterator[RenderableType]:
    yield Text.assemble((f"{shown.study} · {shown.name}", "bold cyan"), f" · candidate {shown.candidate.digest}")
    if shown.record is not None:
        yield Text(round_text(shown.record))
    yield Text()


def _prompts(shown: NamedPrompts, other: NamedPrompts | None) -> Iterator[RenderableType]:
    before: Mapping[str, float] = other.prompt_tokens if other else {}
    for name, prompt in shown.candidate.prompts.items():
        demos = f"demos {demos_text(prompt)} · " if prompt.demos else ""
        cost = cost_text(name, shown.prompt_tokens, before, other.name if other else "")
        yield Text.assemble((name, "bold"), f" · {demos}{cost}")
        yield Text(prompt_text(prompt))
        yield Text()


def _diff(shown: NamedPrompts, other: NamedPrompts) -> Iterator[RenderableType]:
    yield Text(f"What changed from {other.name} to {shown.name}", style="bold cyan")
    for name, lines in _changes(shown, other).items():
        if not lines:
            yield Text(f"{name}: the same", style="dim")
        for line in lines:
            yield Text(line, style=STYLES[kind_of(line)])
    if shown.candidate.weights.digest != other.candidate.weights.digest:
        yield Text("The weights differ too.", style="dim")


def _changes(shown: NamedPrompts, other: NamedPrompts) -> dict[str, list[str]]:
    return changes(other.candidate.prompts, shown.candidate.prompts, (other.name, shown.name))
