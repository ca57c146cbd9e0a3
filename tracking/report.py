"""What a study says of itself in words: the verdict, the footnotes, how numbers are written. Reads a StudyReport only.

Every share is shown in percent, every effect in points (hundredths of the score or of gold). Knows no files, no MLflow
and no tasks. The tables stand in ``tables``; ``terminal`` and ``page`` draw both.
"""

from __future__ import annotations

from collections.abc import Iterable

from colever.config import LEVER_LETTERS
from colever.reported import Cell, Estimate, StudyReport
from colever.types import Cost

ARMS = {"base": "base", "prompt": "prompt only", "weights": "weights only", "both": "both levers"}
EFFECTS = {
    "prompt": "prompt lever",
    "weights": "weight lever",
    "interaction": "interaction",
    "order": "p,w over w,p",
    "gain": "in all",
}
CONDITIONAL = (
    "Intervals are 95 % over test examples (effects: paired) and conditional on this one training run: "
    "another seed may differ by more."
)


def verdict(report: StudyReport) -> str:
    """One or two sentences that answer the question: from what to what, and which lever earned it."""
    if not report.finished:
        return _unfinished_verdict(report)
    base, best = report.table["base"], best_cell(report)
    head = f"{report.task}: {_main(report, base)} → {_main(report, best)} {measure(report)} on test"
    size = f" (n = {best.examples})" if best.examples else ""
    shares = [
        f"{EFFECTS[name]} {points(report.effects[name])}"
        for name in ("prompt", "weights", "interaction")
        if name in report.effects
    ]
    other = report.table.get("both")
    one = report.path and len({record.lever for record in report.path if record.accepted}) < 2
    if shares and other is not None and (one or value_of(report, other) != value_of(report, best)):
        shares[0] = f"of what both levers reach, {share(value_of(report, other))}, {shares[0]}"
    earned = f": {', '.join(shares)}" if shares else ""
    value = value_of(report, best)
    reached = (
        "" if value is None else f" Target {level(report.target)} {'reached' if value >= report.target else 'missed'}."
    )
    how = spelled(kept_schedule(report)) if report.path else spelled(report.winner)
    return f"{head}{size} by {how}{_least(report)}{earned}.{reached}"


def _least(report: StudyReport) -> str:
    """What the winner won by, where that is its cost."""
    if report.objective != "cost" or not report.path or report.path[-1].dev.score < report.target:
        return ""
    if report.path[0].before.score >= report.target:
        return f", though the base is at {level(report.target)} on dev for nothing"
    spent = along(report.axis, sum((record.cost for record in report.path), Cost()))
    return f", the cheapest way to {level(report.target)} on dev ({spent})"


def main_effects(report: StudyReport) -> dict[str, Estimate]:
    """The effects on the report's measure: without those on the score that stand beside gold's."""
    return {name: effect for name, effect in report.effects.items() if not name.endswith("_score")}


def kept_schedule(report: StudyReport) -> str:
    """The winner's schedule without the rounds whose child was not kept."""
    return ",".join(record.lever[0] for record in report.path if record.accepted)


def is_winner(report: StudyReport, cell: Cell) -> bool:
    """Whether an arm is the winner: where cost is the objective, its schedule's best on dev may be another trial's."""
    if cell.name == "base" or not report.path or cell.schedule not in (report.winner, kept_schedule(report)):
        return False
    return cell.dev in (None, report.path[-1].dev.score)


def winning_trial(report: StudyReport) -> int | None:
    """The number of the winner's trial; None where there is none."""
    if not report.path:
        return None
    score, spent = report.path[-1].dev.score, sum((record.cost for record in report.path), Cost())
    same = [arm for arm in report.arms if arm.schedule == report.winner and arm.dev_score in (None, score)]
    return min(same, key=lambda arm: (arm.cost != spent, arm.trial)).trial if same else None


def spelled(schedule: str) -> str:
    """``p,w`` → ``prompt → weights``; an empty schedule is the base."""
    return " → ".join(LEVER_LETTERS.get(letter, letter) for letter in schedule.split(",")) if schedule else "base"


def footnotes(report: StudyReport) -> Iterable[str]:
    """What must be known to read the numbers, one line each."""
    if not report.finished:
        yield "The study is not finished: test is read once, when it ends, so everything here is dev."
    if report.dev_gain is not None and report.test_gain is not None:
        survived = f", {100 * report.test_gain / report.dev_gain:.0f} % of it" if report.dev_gain > 0 else ""
        gained = f"{100 * report.dev_gain:+.1f} points there and {100 * report.test_gain:+.1f} on test{survived}"
        yield f"Chosen on dev: gained {gained}."
    if report.has_gold:
        stops = report.guard is not None and report.guard.on_hacking == "stop"
        unless = ", but the guard, which refuses rounds by it" if stops else ""
        yield f"Gold is the task's truth metric: no lever and no choice among candidates read it{unless}."
    if report.finished:
        yield CONDITIONAL
    if report.expected is not None:
        texts = (", ".join(_spent(cost)) for cost in (report.expected, report.cost))
        yield "The sweep was expected to take {}; it took {}.".format(*texts)
    if any(unlike := [c.task for c in report.elsewhere if c.change.resolved and c.change.value < 0]):
        yield f"The trained weights do worse on {', '.join(dict.fromkeys(unlike))} than the model's own (on dev)."
    if any(not effect.resolved for effect in report.effects.values()):
        yield "Unresolved: the interval holds 0."
    yield from report.notes


def _spent(cost: Cost) -> list[str]:
    return [along(axis, cost) for axis in ("rollouts", "flops", "seconds", *(["dollars"] if cost.dollars else []))]


# --- small pieces --------------------------------------------------------------------------------


def _unfinished_verdict(report: StudyReport) -> str:
    done = f"{len(report.arms)} trial{'s' if len(report.arms) != 1 else ''}"
    if not report.arms:
        return f"{report.task}: no trial of study {report.study} has ended yet."
    best = max(report.arms, key=lambda arm: arm.dev if arm.dev_score is None else arm.dev_score)
    before = report.path[0].before if report.path else None
    base = (before.gold if report.has_gold else before.score) if before else None
    start = f"{share(base)} → " if base is not None else ""
    return (
        f"{report.task}: {start}{share(best.dev)} {measure(report)} on dev by {spelled(best.schedule)} "
        f"after {done}; the study is not finished and test is unread."
    )


def best_cell(report: StudyReport) -> Cell:
    """The winner as it was evaluated; the base if nothing was pulled."""
    if (whole := report.parts.get("p*,w*")) is not None and whole.score is not None:
        return whole
    schedules = {report.winner, kept_schedule(report)} - {""}
    chosen = [cell for cell in report.table.values() if cell.score is not None and cell.schedule in schedules]
    return chosen[0] if chosen else report.table["base"]


def measure(report: StudyReport) -> str:
    """What the report's effects, thresholds and target are on."""
    return "gold" if report.has_gold else "score"


def value_of(report: StudyReport, cell: Cell) -> float | None:
    estimate = cell.gold if report.has_gold else cell.score
    return None if estimate is None else estimate.value


def _main(report: StudyReport, cell: Cell) -> str:
    return share(value_of(report, cell))


def interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{share(estimate.value)} {bounds(estimate)}"


def bounds(estimate: Estimate) -> str:
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def effect_text(effect: Estimate | None) -> str:
    if effect is None:
        return "–"
    text = f"{100 * effect.value:+.1f} {bounds(effect)}"
    return text if effect.resolved else text + " unresolved"


def points(effect: Estimate) -> str:
    return f"{100 * effect.value:+.1f} points" + ("" if effect.resolved else " (unresolved)")


def share(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def level(value: float) -> str:
    return f"{100 * value:g} %"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def cost_texts(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.rollouts:,}", f"{cost.flops / 1e12:,.1f}", duration(cost.seconds)


def dollars(cost: Cost) -> str:
    """Cents where there are enough of them to tell costs apart."""
    if cost.dollars >= 1:
        return f"${cost.dollars:,.2f}"
    return f"${cost.dollars:.{4 if 0 < cost.dollars < 0.01 else 3}f}"


def along(axis: str, cost: Cost) -> str:
    """A cost in the unit of the study's axis."""
    rollouts, flops, time = cost_texts(cost)
    texts = {"rollouts": f"{rollouts} rollouts", "flops": f"{flops} TFLOPs", "seconds": time, "dollars": dollars(cost)}
    return texts.get(axis) or f"{cost.tokens / 1e6:,.2f} M tokens"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
