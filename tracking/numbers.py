"""Records as MLflow's metrics and parameters: short keys, the same for every trial. Knows no MLflow.

A point is (key, step, value). Headline numbers have step 0 alone; curves have one point a step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from colever.looks import Look
from colever.prompt_notes import PromptNotes, drop_of
from colever.reported import StudyReport
from colever.tracking.report import main_effects
from colever.types import Cost, Evaluation, RoundRecord, TrialRecord

Point = tuple[str, int, float]

NOT_IN_KEYS = re.compile(r"[^\w\-./: ]")

SHORT = {
    "learning_rate": "lr",
    "group_size": "G",
    "examples_per_update": "examples",
    "round_budget": "cap",
    "scale_rewards": "scaling",
    "max_grad_norm": "clip",
}


def of_evaluation(state: Evaluation, step: int) -> Iterator[Point]:
    """``dev/score``, ``dev/gold``, ``dev/<criterion>``, and each predictor's mean completion and prompt in tokens."""
    yield from _points(
        step,
        {
            f"{state.split}/score": state.score,
            f"{state.split}/gold": state.gold,
            **{f"{state.split}/{name}": value for name, value in state.by_criterion.items()},
            **{f"agreement/{name}": value for name, value in state.agreement.items()},
            **{f"tokens/{name}": value for name, value in state.completion_tokens.items()},
            **{f"prompt_tokens/{name}": value for name, value in state.prompt_tokens.items()},
        },
    )


def of_cost(cost: Cost, step: int = 0) -> Iterator[Point]:
    yield from _points(
        step,
        {
            "cost/rollouts": cost.rollouts,
            "cost/seconds": round(cost.seconds, 1),
            "cost/tflops": cost.flops / 1e12,
            "cost/trained_tokens": cost.trained_tokens,
            "cost/dollars": cost.dollars or None,
            "cost/judge_calls": cost.judge_calls or None,
        },
    )


def of_path(rounds: Sequence[RoundRecord], first_step: int = 0) -> Iterator[Point]:
    """A trial's curves: the candidate kept and the cost so far, after no round (step 0), the first, …"""
    if not rounds:
        return
    spent, states = Cost(), [rounds[0].before, *(r.dev for r in rounds)]
    for step, state in enumerate(states):
        spent = spent + rounds[step - 1].cost if step else spent
        if step >= first_step:
            yield from of_evaluation(state, step)
            yield from of_cost(spent, step)


def of_base(state: Evaluation) -> Iterator[Point]:
    """The base as an arm of its own."""
    yield from of_evaluation(state, 0)
    yield from of_cost(Cost())
    yield from _points(0, {"gain/prompt": 0.0, "gain/weights": 0.0})


def of_round(record: RoundRecord) -> Iterator[Point]:
    """What the pull made, kept or not, its gain in dev score, its cost, and its curves under ``train/``."""
    yield from of_evaluation(record.after, 0)
    yield from _points(0, {"gain": record.after.score - record.before.score})
    yield from of_cost(record.cost)
    yield from of_choice(record)
    for key, curve in record.metrics.items():
        for step, value in curve:
            yield from _points(step, {f"train/{key.removeprefix('train/')}": value})


def of_look(look: Look, step: int = 0) -> Iterator[Point]:
    """What the guard saw: gain of score and of gold since base, and the false gain with its lower bound."""
    yield from _points(
        step,
        {
            "guard/false_gain": look.false_gain,
            "guard/false_gain_low": look.low,
            "guard/score_gain": look.score_gain,
            "guard/gold_gain": look.gold_gain,
        },
    )


def of_choice(record: RoundRecord) -> Iterator[Point]:
    """The train score that chose a prompt round's child, how far dev is below it, what the headroom test found."""
    notes = PromptNotes.of(record)
    room = notes.headroom.gain if notes.headroom else None
    yield from _points(0, {"selection/train": notes.train, "selection/drop": drop_of(record), "headroom/gain": room})


def of_trial(record: TrialRecord) -> Iterator[Point]:
    """Gain of each lever in dev score over the rounds kept: what the levers themselves were after."""
    gains = {"prompt": 0.0, "weights": 0.0}
    for item in record.rounds:
        gains[item.lever] += item.after.score - item.before.score if item.accepted else 0.0
    yield from _points(0, {f"gain/{lever}": value for lever, value in gains.items()})


def of_study(report: StudyReport) -> Iterator[Point]:
    """``test/<arm>`` and ``effect/<name>`` (of gold where there is gold), the cost, then every interval's bounds.

    The UI lists metrics in the order in which they were logged.
    """
    cells = {name: cell for name, cell in report.table.items() if cell.score is not None}
    measured = {name: cell.gold if report.has_gold else cell.score for name, cell in cells.items()}
    effects = main_effects(report)
    yield from _points(0, {f"test/{name}": e.value for name, e in measured.items() if e})
    if report.has_gold:
        yield from _points(0, {f"test/{name}_score": cell.score.value for name, cell in cells.items() if cell.score})
    yield from _points(0, {f"effect/{name}": effect.value for name, effect in effects.items()})
    yield from of_cost(report.cost)
    yield from _points(0, {f"elsewhere/{c.task}_{c.arm}": c.change.value for c in report.elsewhere})
    bounds = {**{n: e for n, e in measured.items() if e}, **{f"effect_{n}": e for n, e in effects.items()}}
    for name, estimate in bounds.items():
        yield from _points(0, {f"interval/{name}_low": estimate.low, f"interval/{name}_high": estimate.high})


def params_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow's parameters: nested ones by their last name, or by both names where two share it."""
    flat = list(_flat(settings))
    lasts = [path[-1] for path, _ in flat]
    named = {path: path[-1] if lasts.count(path[-1]) == 1 else ".".join(path[-2:]) for path, _ in flat}
    return {SHORT.get(named[path], named[path]): _text(value) for path, value in flat}


def _flat(settings: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in settings.items():
        path = (*above, *key.split("."))
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        elif value is not None:
            yield path, value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _points(step: int, values: Mapping[str, float | None]) -> Iterator[Point]:
    """Rounded, since the UI's cells show every digit; values below 0.01 keep four significant ones.

    What MLflow takes in no key, such as the brackets of a predictor ``steps[0]``, becomes a dot.
    """
    for key, value in values.items():
        if value is None or not math.isfinite(value):
            continue
        yield NOT_IN_KEYS.sub(".", key), step, round(value, 4) if abs(value) >= 0.01 else float(f"{value:.4g}")
