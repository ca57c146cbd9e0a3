"""A report's figures for the HTML page, as inline SVG; colours are classes of its styles. Reads a StudyReport only.

Each is about as wide as a phone, so that its text is readable there; the page puts two beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from colever.reported import Cell, Estimate, StudyReport
from colever.tracking.figures import COST_UNITS, INK, LEVER_COLOURS, RED, drawn_arms
from colever.tracking.report import (
    ARMS,
    EFFECTS,
    bounds,
    effect_text,
    interval,
    is_winner,
    measure,
    share,
    value_of,
)
from colever.tracking.svg import Picture, Scale, scale, ticks

WIDTH = 440
LEFT = 38  # of the value axis
ROW = 17  # height of one line of the criteria


def colour_class(colour: str, part: str = "fill") -> str:
    """The style sheet's class for a colour of the figures: ``fill-009e73``."""
    return f"{part}-{colour.lstrip('#')}"


def waterfall(report: StudyReport) -> str | None:
    """From base by each lever's Shapley share to both, and how far both are from the sum of each alone."""
    base, both = (value_of(report, report.table[name]) for name in ("base", "both"))
    effects = {name: report.effects.get(name) for name in ("prompt", "weights", "interaction")}
    prompt, weights, interaction = effects.values()
    if base is None or both is None or prompt is None or weights is None or interaction is None:
        return None
    middle = base + prompt.value
    bars: list[tuple[str, float, float, Estimate | None]] = [
        ("prompt", base, middle, prompt),
        ("weights", middle, middle + weights.value, weights),
        ("interaction", both - interaction.value, both, interaction),
    ]
    label = f"{measure(report)} on test: base {share(base)}; " + "; ".join(
        f"{EFFECTS[name]} {effect_text(effect)}" for name, _, _, effect in bars
    )
    picture = Picture(WIDTH, 272, f"{label}; both levers {share(both)}")
    ends = [level for _, start, end, _ in bars for level in (start, end)]
    y = _value_axis(picture, max(ends), report.target, 100 * min(0.0, *ends))
    column = (WIDTH - LEFT) / 5
    places = {"base": 0, "prompt": 1, "weights": 2, "both": 3, "interaction": 4}
    for name, value in (("base", base), ("both", both)):
        _column(picture, y, LEFT + column * places[name], column, 0, value, name, f"{100 * value:.1f}")
    for name, start, end, effect in bars:
        assert effect is not None
        x = LEFT + column * places[name]
        _column(picture, y, x, column, start, end, name, f"{100 * effect.value:+.1f}", effect)
        picture.line(x - column / 4, y(100 * start), x + column / 4, y(100 * start), "link")
    return picture.markup()


def _column(
    picture: Picture, y: Scale, x: float, width: float, start: float, end: float, name: str, text: str,
    effect: Estimate | None = None,
) -> None:  # fmt: skip
    """One bar between two values, its name below, its number above its interval."""
    top, bottom = y(100 * max(start, end)), y(100 * min(start, end))
    faint = " faint" if effect and not effect.resolved else ""
    kind = "overlap" if name == "interaction" else colour_class(LEVER_COLOURS[name])
    middle = x + width / 2
    said = ARMS[name] if effect is None else EFFECTS[name]
    picture.box(x + width * 0.16, top, width * 0.68, bottom - top, kind + faint, f"{said}: {text}")
    if effect is not None and name != "interaction":
        high, low = (y(100 * (start + bound)) for bound in (effect.high, effect.low))
        picture.whisker(middle, low, high)
        top = min(top, high)
    picture.text(middle, top - 6, text, "value")
    first, _, second = said.partition(" ")
    picture.text(middle, picture.height - 36, first)
    picture.text(middle, picture.height - 21, second)
    if faint:
        picture.text(middle, picture.height - 6, "unresolved", "small")


def square(report: StudyReport) -> str | None:
    """The four arms as prompts by weights, each with its interval; None on a study that is not finished."""
    if not report.finished:
        return None
    cells = {name: report.table[name] for name in ARMS if name in report.table}
    said = "; ".join(f"{ARMS[name]} {_told(report, cell)}" for name, cell in cells.items())
    picture = Picture(WIDTH, 272, f"{measure(report)} on test: {said}")
    left, top = 72.0, 24.0
    width, height = (WIDTH - left) / 2, (272 - top) / 2
    for column, text in enumerate(("the model's own weights", "trained weights")):
        picture.text(left + width * (column + 0.5), 15, text, "axis")
    for row, text in enumerate(("base", "chosen")):
        middle = top + height * (row + 0.5)
        picture.text(0, middle - 3, text, "axis", "start")
        picture.text(0, middle + 12, "prompts", "axis", "start")
    for name, cell in cells.items():
        row, column = name in ("prompt", "both"), name in ("weights", "both")
        _tile(picture, report, cell, left + width * column + 3, top + height * row + 3, width - 6, height - 6)
    return picture.markup()


def _told(report: StudyReport, cell: Cell) -> str:
    estimate = cell.gold if report.has_gold else cell.score
    return "not pulled" if estimate is None else interval(estimate)


def _tile(picture: Picture, report: StudyReport, cell: Cell, x: float, y: float, width: float, height: float) -> None:
    estimate = cell.gold if report.has_gold else cell.score
    middle = x + width / 2
    won = is_winner(report, cell) and estimate is not None
    picture.box(x, y, width, height, "tile best" if won else "tile")
    schedule = f" ({cell.schedule})" if 0 < len(cell.schedule) < 16 else ""
    picture.text(middle, y + 22, f"{ARMS[cell.name]}{schedule}")
    if estimate is None:
        picture.text(middle, y + height / 2 + 8, "not pulled", "axis")
        return
    picture.text(middle, y + 54, share(estimate.value), "big")
    picture.text(middle, y + 73, bounds(estimate), "axis")
    across = scale(0, 1, x + 14, x + width - 14)
    place, colour = y + height - 22, LEVER_COLOURS[cell.name]
    picture.line(across(0), place, across(1), place, "track")
    picture.line(across(report.target), place - 7, across(report.target), place + 7, "target")
    picture.line(across(estimate.low), place, across(estimate.high), place, "span " + colour_class(colour, "stroke"))
    picture.dot(across(estimate.value), place, 5, colour_class(colour), interval(estimate))


def cost_curves(report: StudyReport, unit: str) -> str | None:
    """Dev after every round of every trial against what it had cost by then, in ``unit`` of COST_UNITS."""
    arms = drawn_arms(report)
    if not arms:
        return None
    spent = COST_UNITS[unit]
    marks = ticks(max(spent(cost) for arm, _, _ in arms for cost, _ in arm.curve) or 1.0, 4)
    lowest = min(report.target, *(value for arm, _, _ in arms for _, value in arm.curve))
    best = arms[0][0]
    said = f"{measure(report)} on dev against {unit}: {len(arms)} trials, the best {best.schedule} at {share(best.dev)}"
    picture = Picture(WIDTH, 290, said)
    y = _value_axis(picture, 1.0, report.target, 100 * lowest, foot=44)
    x = scale(0, marks[-1], LEFT + 6, WIDTH - 18)
    for mark in marks:
        picture.text(x(mark), picture.height - 26, f"{mark:,.0f}" if marks[1] >= 1 else f"{mark:g}", "axis")
    picture.text((LEFT + WIDTH) / 2, picture.height - 6, f"cost so far ({unit})", "axis")
    for arm, colour, width in sorted(arms, key=lambda drawn: -drawn[2]):
        points = [(x(spent(cost)), y(100 * value)) for cost, value in arm.curve]
        picture.path(points, "curve " + colour_class(colour, "stroke"), width)
        for (cost, value), (across, up) in zip(arm.curve, points, strict=True):
            tip = f"{arm.schedule} (#{arm.trial}): {share(value)} at {spent(cost):,.1f} {unit}"
            picture.dot(across, up, width / 2 + 2, colour_class(colour), tip)
    return picture.markup()


def score_and_gold(report: StudyReport) -> str | None:
    """Every round that the guard looked at, score against gold on dev; None without one."""
    guard = report.guard
    if guard is None or guard.base is None or not guard.rounds:
        return None
    score, gold = guard.base
    worth = guard.rounds[0].look.worth
    alarms = ", ".join(judged.name for judged in guard.alarms) or "none"
    picture = Picture(WIDTH, 290, f"Score against gold on dev, {len(guard.rounds)} rounds; alarms: {alarms}")
    y = _value_axis(picture, 1.0, report.target, 0, foot=44)
    x = scale(0, 1, LEFT + 6, WIDTH - 18)
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        picture.text(x(mark), picture.height - 26, f"{100 * mark:.0f}", "axis")
    picture.text((LEFT + WIDTH) / 2, picture.height - 6, "gold on dev (%)", "axis")
    ends = [(at, min(1.0, max(0.0, score + worth * (at - gold)))) for at in (0.0, 1.0)]
    picture.path([(x(a), y(100 * b)) for a, b in ends], "curve " + colour_class(LEVER_COLOURS["base"], "stroke"), 1.5)
    picture.dot(x(gold), y(100 * score), 5, colour_class(INK), f"base: score {share(score)}, gold {share(gold)}")
    for judged in guard.rounds:
        colour = RED if judged.look.alarm else LEVER_COLOURS["weights" if judged.lever == "weights" else "prompt"]
        tip = f"{judged.name} ({judged.lever}): score {share(judged.score)}, gold {share(judged.gold)}"
        picture.dot(x(judged.gold), y(100 * judged.score), 6 if judged.look.alarm else 4.5, colour_class(colour), tip)
        if judged.look.alarm:
            picture.text(x(judged.gold), y(100 * judged.score) - 9, judged.name, "small")
    return picture.markup()


def criteria_changes(report: StudyReport) -> str | None:
    """Each criterion's mean on test, from base to each arm, and the change in points; None without base or arms."""
    base = report.table["base"].by_criterion
    arms = {name: c.by_criterion for name, c in report.table.items() if name != "base" and c.by_criterion}
    if not base or not arms:
        return None
    block = 26 + ROW * len(arms)
    picture = Picture(WIDTH, 26 + block * len(base), _criteria_told(base, arms))
    across = scale(0, 1, 96, WIDTH - 52)
    for mark in (0.0, 0.5, 1.0):
        picture.line(across(mark), 20, across(mark), picture.height - 4, "grid")
        picture.text(across(mark), 13, f"{100 * mark:.0f} %", "axis")
    for place, (criterion, start) in enumerate(base.items()):
        top = 26 + block * place
        picture.text(0, top + 13, criterion if len(criterion) <= 56 else criterion[:55] + "…", "value", "start")
        picture.line(across(start), top + 19, across(start), top + 17 + ROW * len(arms), "base")
        for row, (name, values) in enumerate(arms.items()):
            _change(picture, across, top + 18 + ROW * (row + 0.5), name, start, values.get(criterion))
    return picture.markup()


def _change(picture: Picture, across: Scale, y: float, name: str, start: float, end: float | None) -> None:
    picture.text(0, y + 4, ARMS.get(name, name), "small", "start")
    if end is None:
        picture.text(picture.width, y + 4, "–", "small", "end")
        return
    colour = LEVER_COLOURS.get(name, INK)
    picture.line(across(start), y, across(end), y, "span " + colour_class(colour, "stroke"))
    picture.dot(across(end), y, 4.5, colour_class(colour), f"{ARMS.get(name, name)}: {share(start)} → {share(end)}")
    picture.text(picture.width, y + 4, f"{100 * (end - start):+.1f}", "small", "end")


def _criteria_told(base: Mapping[str, float], arms: Mapping[str, Mapping[str, float]]) -> str:
    def one(name: str) -> str:
        ends = (f"{ARMS.get(arm, arm)} {share(values.get(name))}" for arm, values in arms.items())
        return f"{name}: base {share(base[name])}, {', '.join(ends)}"

    return "Criteria on test. " + "; ".join(map(one, base))


def _value_axis(picture: Picture, most: float, target: float, least: float = 0, foot: float = 54) -> Scale:
    """Percent from just below ``least`` to 100, or beyond where ``most`` is more; the target has a label of its own."""
    span = max(100.0, 100 * most) - least
    step = 50 if span > 200 else 20 if span > 60 else 10
    bottom, top = step * math.floor(least / step), step * math.ceil(max(100.0, 100 * most) / step)
    y = scale(bottom, top, picture.height - foot, 24)
    aim = y(max(bottom, 100 * target))
    for value in range(bottom, top + 1, step):
        picture.line(LEFT, y(value), picture.width, y(value), "grid")
        if abs(y(value) - aim) > 12:
            picture.text(LEFT - 6, y(value) + 4, f"{value}", "axis", "end")
    picture.text(0, 11, "%", "axis", "start")
    picture.line(LEFT, aim, picture.width, aim, "target")
    picture.text(LEFT - 6, aim + 4, f"{100 * target:g}", "aim", "end")
    return y
