"""A StudyReport as JSON: the short public form, and the full form that loads back. Knows no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from colever.errors import StoreError
from colever.types import ArmRow, Cell, Cost, Estimate, RoundRecord, StudyReport, Threshold

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
            "dev_gain": report.dev_gain,
            "test_gain": report.test_gain,
            "notes": list(report.notes),
        }
    )


def dump(report: StudyReport) -> dict[str, Any]:
    """The full form, every round's per-example values included; ``load`` gives an equal report."""
    fields = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    fields.update(
        table=_asdicts(report.table),
        parts=_asdicts(report.parts),
        effects=_asdicts(report.effects),
        thresholds=[dataclasses.asdict(t) for t in report.thresholds],
        arms=[dataclasses.asdict(a) for a in report.arms],
        path=[record.to_json() for record in report.path],
        cost=dataclasses.asdict(report.cost),
        watched={split: _asdicts(cells) for split, cells in report.watched.items()},
        notes=list(report.notes),
    )
    return fields


def load(data: Mapping[str, Any]) -> StudyReport:
    """The report that ``dump`` wrote; raises StoreError naming what is missing or odd."""
    try:
        fields = dict(data)
        fields.update(
            table={name: _load_cell(cell) for name, cell in data["table"].items()},
            parts={name: _load_cell(cell) for name, cell in data["parts"].items()},
            effects={name: Estimate(**effect) for name, effect in data["effects"].items()},
            thresholds=[Threshold(**{**t, "cost": t["cost"] and Cost(**t["cost"])}) for t in data["thresholds"]],
            arms=[_load_arm(arm) for arm in data["arms"]],
            path=[RoundRecord.from_json(record) for record in data["path"]],
            cost=Cost(**data["cost"]),
            watched={
                s: {name: _load_cell(cell) for name, cell in cells.items()} for s, cells in data["watched"].items()
            },
        )
        return StudyReport(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"stored report is not readable: {type(error).__name__}: {error}") from error


def _cell(cell: Cell | None) -> dict[str, Any]:
    score, gold = (cell.score, cell.gold) if cell else (None, None)
    return {
        "score": score and score.value,
        "low": score and score.low,
        "high": score and score.high,
        "gold": gold and gold.value,
        "gold_low": gold and gold.low,
        "gold_high": gold and gold.high,
        "pulled": score is not None,
        "schedule": cell.schedule if cell else "",
        "dev": cell.dev if cell else None,
        "examples": cell.examples if cell else None,
        "by_criterion": dict(cell.by_criterion) if cell else {},
        "completion_tokens": dict(cell.completion_tokens) if cell else {},
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
            }
            for name, state in (("before", record.before), ("after", record.after))
        },
    }


def _asdicts(items: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(item) for name, item in items.items()}


def _load_cell(data: Mapping[str, Any]) -> Cell:
    fields = dict(data)
    fields.update({name: data[name] and Estimate(**data[name]) for name in ("score", "gold")})
    return Cell(**fields)


def _load_arm(data: Mapping[str, Any]) -> ArmRow:
    curve = tuple((Cost(**cost), value) for cost, value in data["curve"])
    return ArmRow(**{**data, "cost": Cost(**data["cost"]), "curve": curve})


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
