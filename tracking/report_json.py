"""A StudyReport as JSON. Knows no files."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from colever.looks import Guarded
from colever.prompt_notes import drop_of
from colever.reported import ArmRow, Cell, Flips, PromptRound, StudyReport
from colever.types import RoundRecord

ARM_NAMES = ("base", "prompt", "weights", "both")
EFFECT_NAMES = ("prompt", "weights", "interaction")


def to_json(report: StudyReport) -> dict[str, Any]:
    """The public form: fractions in [0, 1], costs as fields of Cost, null for what was not pulled or measured."""
    effects = dict.fromkeys(EFFECT_NAMES) | {
        name: dataclasses.asdict(effect) for name, effect in report.effects.items()
    }
    return _finite(
        {
            "task": report.task,
            "model": report.model,
            "target": report.target,
            "table": {name: _cell(report.table.get(name)) for name in ARM_NAMES},
            "effects": effects,
            "thresholds": [dataclasses.asdict(threshold) for threshold in report.thresholds],
            "arms": [_arm(arm) for arm in report.arms],
            "study": report.study,
            "finished": report.finished,
            "has_gold": report.has_gold,
            "winner": report.winner,
            "parts": {name: _cell(cell) for name, cell in report.parts.items()},
            "watched": {s: {name: _cell(cell) for name, cell in cells.items()} for s, cells in report.watched.items()},
            "path": [_round(record) for record in report.path],
            "cost": dataclasses.asdict(report.cost),
            "expected": report.expected and dataclasses.asdict(report.expected),
            "dev_gain": report.dev_gain,
            "test_gain": report.test_gain,
            "reading_cost": dataclasses.asdict(report.reading_cost),
            "prompts": report.path[-1].kept.to_json()["prompts"] if report.path else {},
            "notes": list(report.notes),
            "failures": list(report.failures),
            "flips": _flips(report.flips),
            "objective": report.objective,
            "axis": report.axis,
            "front": [dataclasses.asdict(stop) for stop in report.front],
            "levels": [dataclasses.asdict(level) for level in report.levels],
            "prompt_rounds": [_prompt_round(pulled) for pulled in report.prompt_rounds],
            "elsewhere": [dataclasses.asdict(change) for change in report.elsewhere],
            "guard": report.guard and _guard(report.guard),
        }
    )


def _cell(cell: Cell | None) -> dict[str, Any]:
    score, gold = (cell.score, cell.gold) if cell else (None, None)
    return {
        "score": score and score.value,
        "low": score and score.low,
        "high": score and score.high,
        "gold": gold and gold.value,
        "gold_low": gold and gold.low,
        "gold_high": gold and gold.high,
        "pulled": cell is not None and (cell.name == "base" or bool(cell.schedule)),
        "schedule": cell.schedule if cell else "",
        "dev": cell.dev if cell else None,
        "examples": cell.examples if cell else None,
        "by_criterion": dict(cell.by_criterion) if cell else {},
        "completion_tokens": dict(cell.completion_tokens) if cell else {},
        "prompt_tokens": dict(cell.prompt_tokens) if cell else {},
        "calls": dict(cell.calls) if cell else {},
    }


def _flips(flips: Flips | None) -> dict[str, Any] | None:
    """Ids only: the examples themselves are the task's."""
    if flips is None:
        return None
    return {
        "examples": flips.examples,
        "gained": list(flips.gained),
        "lost": list(flips.lost),
        "p_value": flips.p_value,
    }


def _arm(arm: ArmRow) -> dict[str, Any]:
    return {
        "schedule": arm.schedule,
        "dev": arm.dev,
        "test": arm.test,
        "cost": dataclasses.asdict(arm.cost),
        "trial": arm.trial,
        "dev_score": arm.dev_score,
        "dev_gold": arm.dev_gold,
    }


def _round(record: RoundRecord) -> dict[str, Any]:
    """A round without its per-example values and curves."""
    return {
        "key": record.key,
        "lever": record.lever,
        "accepted": record.accepted,
        "cost": dataclasses.asdict(record.cost),
        **{
            name: {
                "score": state.score,
                "gold": state.gold,
                "by_criterion": dict(state.by_criterion),
                "completion_tokens": dict(state.completion_tokens),
                "prompt_tokens": dict(state.prompt_tokens),
            }
            for name, state in (("before", record.before), ("after", record.after))
        },
    }


def _prompt_round(pulled: PromptRound) -> dict[str, Any]:
    """What train promised and dev gave; null for what the round's notes lack."""
    record, notes = pulled.record, pulled.notes
    return {
        "round": pulled.name,
        "key": record.key,
        "way": notes.way or None,
        "chosen": notes.chosen or None,
        "train": notes.train,
        "train_parent": notes.parent,
        "train_examples": notes.examples,
        "dev": record.after.score,
        "drop": drop_of(record),
        "change": pulled.change and dataclasses.asdict(pulled.change),
        "accepted": record.accepted,
        "headroom": notes.headroom and dataclasses.asdict(notes.headroom),
        "prompts": record.child.to_json()["prompts"],
    }


def _guard(guard: Guarded) -> dict[str, Any]:
    """Every look, without rollouts."""
    rounds = [
        {
            "round": judged.name,
            "lever": judged.lever,
            "score": judged.score,
            "gold": judged.gold,
            **dataclasses.asdict(judged.look),
            "alarm": judged.look.alarm,
            "refused": judged.refused,
        }
        for judged in guard.rounds
    ]
    return {"on_hacking": guard.on_hacking, "margin": guard.margin, "blind": guard.blind, "rounds": rounds}


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
