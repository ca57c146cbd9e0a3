"""What a study says of itself in the terminal: the verdict first, then tables. Reads a StudyReport only.

Every share is shown in percent, every effect in points (hundredths of the score or of gold). Knows no files, no MLflow
and no tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from colever.config import LEVER_LETTERS
from colever.types import Candidate, Cell, Cost, Estimate, Evaluation, StudyReport

ARMS = {"base": "base", "prompt": "prompt only", "weights": "weights only", "both": "both levers"}
EFFECTS = {
    "prompt": "prompt lever",
    "weights": "weight lever",
    "interaction": "interaction",
    "order": "p,w over w,p",
    "gain": "in all",
}
CONDITIONAL = (
    "Intervals are 95 % over test examples (effects: paired bootstrap) and conditional on this one training run: "
    "another seed may differ by more."
)


def verdict(report: StudyReport) -> str:
    """One or two sentences that answer the question: from what to what, and which lever earned it."""
    if not report.finished:
        return _unfinished_verdict(report)
    base, best = report.table["base"], _best_cell(report)
    head = f"{report.task}: {_main(report, base)} → {_main(report, best)} {_measure(report)} on test"
    size = f" (n = {best.examples})" if best.examples else ""
    shares = [
        f"{EFFECTS[name]} {_points(report.effects[name])}"
        for name in ("prompt", "weights", "interaction")
        if name in report.effects
    ]
    other = report.table.get("both")
    if shares and other is not None and (reached_by_both := _value(report, other)) != _value(report, best):
        shares[0] = f"of what both levers reach, {_share(reached_by_both)}, {shares[0]}"
    earned = f": {', '.join(shares)}" if shares else ""
    value = _value(report, best)
    reached = (
        "" if value is None else f" Target {_level(report.target)} {'reached' if value >= report.target else 'missed'}."
    )
    how = spelled(kept_schedule(report)) if report.path else spelled(report.winner)
    return f"{head}{size} by {how}{earned}.{reached}"


def main_effects(report: StudyReport) -> dict[str, Estimate]:
    """The effects on the report's measure: without those on the score that stand beside gold's."""
    return {name: effect for name, effect in report.effects.items() if not name.endswith("_score")}


def kept_schedule(report: StudyReport) -> str:
    """The winner's schedule without the rounds whose child was not kept."""
    return ",".join(record.lever[0] for record in report.path if record.accepted)


def spelled(schedule: str) -> str:
    """``p,w`` → ``prompt → weights``; an empty schedule is the base."""
    return " → ".join(LEVER_LETTERS.get(letter, letter) for letter in schedule.split(",")) if schedule else "base"


def render(report: StudyReport) -> RenderableType:
    """The whole report as one rich renderable; reads well from 80 columns on."""
    parts: list[RenderableType] = [Text(verdict(report), style="bold"), Text()]
    if report.finished:
        parts += _titled(f"Arms on test: {report.model}, chosen on dev", _arms_table(report, report.table))
        if report.effects:
            parts += _titled("What each lever earned on test, in points", _effects_table(report))
        if report.parts:
            parts += _titled(f"Parts of the winner {report.winner} on test", _parts_table(report))
    if report.path and report.path[-1].kept.prompts:
        parts += _titled("The winner's prompts", _prompts_table(report.path[-1].kept))
    if report.path:
        parts += _titled(f"The winner's path {report.winner} on dev", _path_table(report))
        parts += _titled("Completion length on that path, in tokens", _lengths_table(report))
    parts += _titled(f"First above the level on that path ({_measure(report)}, dev)", _thresholds_table(report))
    parts += _titled(f"Every trial ({_measure(report)}; a shared round is charged in full)", _trials_table(report))
    for split, cells in report.watched.items():
        parts += _titled(f"Watched split: {split}", _arms_table(report, cells))
    parts += [Text(f"· {line}", style="dim") for line in _footnotes(report)]
    return Group(*parts)


# --- tables --------------------------------------------------------------------------------------


def _arms_table(report: StudyReport, cells: Mapping[str, Cell]) -> Table:
    """The arms with the dev score that chose each; the winner's stands out."""
    table = _table("arm", "schedule", *_estimate_columns(report), "dev score")
    for name, cell in cells.items():
        if cell.score is None and name != "base":
            blanks = [""] * (len(_estimate_columns(report)) - 1)
            table.add_row(name, cell.schedule, "not pulled", *blanks, _share(cell.dev), style="dim")
            continue
        winner = name != "base" and cell.schedule in (report.winner, kept_schedule(report))
        table.add_row(
            name, cell.schedule, *_estimates(report, cell), _share(cell.dev), style="bold green" if winner else None
        )
    return table


def _parts_table(report: StudyReport) -> Table:
    meaning = {
        "p*,w*": "prompts, weights",
        "p*,w0": "prompts alone",
        "p0,w*": "weights alone",
    }
    table = _table("part", "its", *_estimate_columns(report))
    for name, cell in report.parts.items():
        table.add_row(name, meaning.get(name, ""), *_estimates(report, cell))
    return table


def _effects_table(report: StudyReport) -> Table:
    """Effects on gold, and beside them those on the score where the report has them (``<name>_score``)."""
    beside = any(name.endswith("_score") for name in report.effects)
    table = _table("effect", *(f"{m} [95 %] " for m in (("gold", "score") if beside else (_measure(report),))))
    for column in table.columns:
        column.justify = "left"
    for name, effect in main_effects(report).items():
        cells = [_effect(effect)]
        if beside:
            cells.append(_effect(report.effects.get(f"{name}_score")))
        table.add_row(EFFECTS.get(name, name), *cells)
    return table


def _prompts_table(candidate: Candidate) -> Table:
    table = _table("predictor", "instruction", "demos")
    table.columns[1].no_wrap, table.columns[1].justify = False, "left"
    for name, prompt in candidate.prompts.items():
        table.add_row(escape(name), escape(prompt.instructions), str(len(prompt.demos)))
    return table


def _path_table(report: StudyReport) -> Table:
    """Gold and score, the round's gain in score, and the cost so far, from the base on."""
    gold = ["gold"] if report.has_gold else []
    table = _table("round", "lever", *gold, "score", "gain", "kept", "rollouts", "time")

    def row(index: int, lever: str, state: Evaluation, gain: str, kept: str, spent: Cost) -> None:
        golds = [_share(state.gold)] if report.has_gold else []
        rollouts, _, time = _cost(spent)
        style = "dim" if kept == "no" else None
        table.add_row(str(index), lever, *golds, _share(state.score), gain, kept, rollouts, time, style=style)

    spent = Cost()
    row(0, "base", report.path[0].before, "", "", spent)
    for index, record in enumerate(report.path, 1):
        spent = spent + record.cost
        gain = f"{100 * (record.after.score - record.before.score):+.1f}"
        row(index, record.lever, record.after, gain, "yes" if record.accepted else "no", spent)
    return table


def _lengths_table(report: StudyReport) -> Table:
    """Mean completion length of each predictor on dev, round by round."""
    states = [report.path[0].before, *(record.after for record in report.path)]
    names = ["base", *(f"{i} {record.lever}" for i, record in enumerate(report.path, 1))]
    table = _table("predictor", *names)
    for predictor in states[0].completion_tokens:
        table.add_row(predictor, *(_number(state.completion_tokens.get(predictor)) for state in states))
    return table


def _thresholds_table(report: StudyReport) -> Table:
    table = _table("level", "lever", "round", "rollouts", "TFLOPs", "time")
    for threshold in report.thresholds:
        if threshold.lever is None:
            table.add_row(_level(threshold.at), "not reached", "", "", "", "", style="dim")
        elif threshold.lever == "base":
            table.add_row(_level(threshold.at), "base", "0", "", "", "")
        else:
            round_number = "" if threshold.round is None else str(threshold.round)
            table.add_row(_level(threshold.at), threshold.lever, round_number, *_cost(threshold.cost or Cost()))
    return table


def _trials_table(report: StudyReport) -> Table:
    table = _table("trial", "schedule", "dev", "test", "rollouts", "TFLOPs", "time")
    best = max(((arm.dev if arm.dev_score is None else arm.dev_score) for arm in report.arms), default=None)
    for arm in sorted(report.arms, key=lambda arm: -arm.dev):
        style = "bold green" if best in (arm.dev_score, arm.dev) else None
        table.add_row(str(arm.trial), arm.schedule, _share(arm.dev), _share(arm.test), *_cost(arm.cost), style=style)
    table.add_section()
    table.add_row("sweep", "each round once", "", "", *_cost(report.cost), style="dim")
    if report.finished:
        table.add_row("report", "test, read once", "", "", *_cost(report.reading_cost), style="dim")
    return table


def _footnotes(report: StudyReport) -> Iterable[str]:
    if not report.finished:
        yield "The study is not finished: test is read once, when it ends, so everything here is dev."
    if report.dev_gain is not None and report.test_gain is not None:
        survived = f", {100 * report.test_gain / report.dev_gain:.0f} % of it" if report.dev_gain > 0 else ""
        gained = f"{100 * report.dev_gain:+.1f} points there and {100 * report.test_gain:+.1f} on test{survived}"
        yield f"Chosen on dev: gained {gained}."
    if report.has_gold:
        yield "Gold is the task's truth metric: no lever and no choice among candidates read it."
    if report.finished:
        yield CONDITIONAL
    if any(not effect.resolved for effect in report.effects.values()):
        yield "Unresolved: the interval holds 0."
    yield from report.notes


# --- small pieces --------------------------------------------------------------------------------


def _unfinished_verdict(report: StudyReport) -> str:
    done = f"{len(report.arms)} trial{'s' if len(report.arms) != 1 else ''}"
    if not report.arms:
        return f"{report.task}: no trial of study {report.study} has ended yet."
    best = max(report.arms, key=lambda arm: arm.dev)
    before = report.path[0].before if report.path else None
    base = (before.gold if report.has_gold else before.score) if before else None
    start = f"{_share(base)} → " if base is not None else ""
    return (
        f"{report.task}: {start}{_share(best.dev)} {_measure(report)} on dev by {spelled(best.schedule)} "
        f"after {done}; the study is not finished and test is unread."
    )


def _best_cell(report: StudyReport) -> Cell:
    """The winner as it was evaluated; the base if nothing was pulled."""
    if (whole := report.parts.get("p*,w*")) is not None and whole.score is not None:
        return whole
    schedules = {report.winner, kept_schedule(report)} - {""}
    chosen = [cell for cell in report.table.values() if cell.score is not None and cell.schedule in schedules]
    return chosen[0] if chosen else report.table["base"]


def _measure(report: StudyReport) -> str:
    return "gold" if report.has_gold else "score"


def _value(report: StudyReport, cell: Cell) -> float | None:
    estimate = cell.gold if report.has_gold else cell.score
    return None if estimate is None else estimate.value


def _main(report: StudyReport, cell: Cell) -> str:
    return _share(_value(report, cell))


def _estimate_columns(report: StudyReport) -> list[str]:
    return ["gold [95 %]", "score [95 %]"] if report.has_gold else ["score [95 %]"]


def _estimates(report: StudyReport, cell: Cell) -> list[str]:
    return [_interval(e) for e in ([cell.gold, cell.score] if report.has_gold else [cell.score])]


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{_share(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _effect(effect: Estimate | None) -> str:
    if effect is None:
        return "–"
    interval = f"{100 * effect.value:+.1f} [{100 * effect.low:.1f}, {100 * effect.high:.1f}]"
    return interval if effect.resolved else interval + " unresolved"


def _points(effect: Estimate) -> str:
    return f"{100 * effect.value:+.1f} points" + ("" if effect.resolved else " (unresolved)")


def _share(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"


def _level(value: float) -> str:
    return f"{100 * value:g} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _cost(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.rollouts:,}", f"{cost.flops / 1e12:,.1f}", _duration(cost.seconds)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _table(*columns: str) -> Table:
    """Text columns left, numbers right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    words = {"arm", "schedule", "part", "its", "effect", "lever", "", "round", "trial", "predictor"}
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    return table


def _titled(title: str, table: Table) -> list[RenderableType]:
    return [Text(title, style="bold cyan"), Padding(table, (0, 0, 1, 2))]
