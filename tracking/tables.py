"""The tables of a report as text: the terminal and the page draw the same rows. Reads a StudyReport only.

Knows no terminal and no HTML. How numbers are written stands in ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping

from colever.reported import Cell, StudyReport
from colever.tracking.hacking import guard_table
from colever.tracking.prompt_tables import headroom, prompt_rounds, prompt_tokens
from colever.tracking.prompt_text import demos_text
from colever.tracking.report import (
    ARMS,
    EFFECTS,
    along,
    cost_texts,
    dollars,
    effect_text,
    interval,
    is_winner,
    level,
    main_effects,
    measure,
    number,
    share,
    winning_trial,
)
from colever.tracking.table import TEXT, Row, Table
from colever.types import Candidate, Cost, Evaluation


def tables(report: StudyReport) -> dict[str, Table]:
    """Every table that the report has data for, by name, in the terminal's order."""
    found: dict[str, Table] = {}
    if report.finished:
        found["arms"] = _arms(report, report.table, f"Arms on test: {report.model}, chosen on dev")
        if report.effects:
            found["effects"] = _effects(report)
        if report.parts:
            found["parts"] = _parts(report)
        if (read := prompt_tokens(report)) is not None:
            found["prompt tokens"] = read
    if report.path and report.path[-1].kept.prompts:
        found["prompts"] = _prompts(report.path[-1].kept)
    if report.prompt_rounds:
        found["prompt rounds"] = prompt_rounds(report)
    if (room := headroom(report)) is not None:
        found["headroom"] = room
    if report.path:
        found["path"] = _path(report)
        found["lengths"] = _lengths(report)
    if (seen := guard_table(report)) is not None:
        found["guard"] = seen
    found["thresholds"] = _thresholds(report)
    if any(level.cheapest for level in report.levels):
        found["levels"] = _levels(report)
    if len(report.front) > 1:
        found["front"] = _front(report)
    found["trials"] = _trials(report)
    if report.elsewhere:
        found["elsewhere"] = _elsewhere(report)
    for split, cells in report.watched.items():
        found[f"watched {split}"] = _arms(report, cells, f"Watched split: {split}")
    return found


def criteria(report: StudyReport) -> Table | None:
    """Each criterion's mean on test by arm, in percent; None where no arm was tested."""
    tested = {name: cell for name, cell in report.table.items() if cell.by_criterion}
    names = list(dict.fromkeys(criterion for cell in tested.values() for criterion in cell.by_criterion))
    if not names:
        return None
    rows = [Row([name, *(share(cell.by_criterion.get(name)) for cell in tested.values())]) for name in names]
    return Table("Criteria on test", ["criterion", *(ARMS.get(name, name) for name in tested)], rows)


def _arms(report: StudyReport, cells: Mapping[str, Cell], title: str) -> Table:
    """The arms with the dev score that chose each; the winner's stands out."""
    estimates, rows = _estimate_columns(report), []
    for name, cell in cells.items():
        if cell.score is None and name != "base":
            blanks = [""] * (len(estimates) - 1)
            rows.append(Row([name, cell.schedule, "not pulled", *blanks, share(cell.dev)], "faint"))
            continue
        texts = [name, cell.schedule, *_estimates(report, cell), share(cell.dev)]
        rows.append(Row(texts, "best" if is_winner(report, cell) else ""))
    return Table(title, ["arm", "schedule", *estimates, "dev score"], rows)


def _parts(report: StudyReport) -> Table:
    meaning = {
        "p*,w*": "prompts, weights",
        "p*,w0": "prompts alone",
        "p0,w*": "weights alone",
    }
    rows = [Row([name, meaning.get(name, ""), *_estimates(report, cell)]) for name, cell in report.parts.items()]
    return Table(f"Parts of the winner {report.winner} on test", ["part", "its", *_estimate_columns(report)], rows)


def _effects(report: StudyReport) -> Table:
    """Effects on gold, and beside them those on the score where the report has them (``<name>_score``)."""
    beside = any(name.endswith("_score") for name in report.effects)
    columns = ["effect", *(f"{m} [95 %] " for m in (("gold", "score") if beside else (measure(report),)))]
    rows = []
    for name, effect in main_effects(report).items():
        scores = [effect_text(report.effects.get(f"{name}_score"))] if beside else []
        rows.append(Row([EFFECTS.get(name, name), effect_text(effect), *scores]))
    return Table("What each lever earned on test, in points", columns, rows, left=frozenset(columns))


def _prompts(candidate: Candidate) -> Table:
    rows = [Row([name, p.instructions, demos_text(p)]) for name, p in candidate.prompts.items()]
    columns = ["predictor", "instruction", "demos"]
    return Table("The winner's prompts", columns, rows, wrap=frozenset({"instruction"}))


def _path(report: StudyReport) -> Table:
    """Gold and score, the round's gain in score, and the cost so far, from the base on."""

    def row(index: int, lever: str, state: Evaluation, gain: str, kept: str, spent: Cost) -> Row:
        golds = [share(state.gold)] if report.has_gold else []
        rollouts, _, time = cost_texts(spent)
        cells = [str(index), lever, *golds, share(state.score), gain, kept, rollouts, time]
        return Row(cells, "faint" if kept == "no" else "")

    spent = Cost()
    rows = [row(0, "base", report.path[0].before, "", "", spent)]
    for index, record in enumerate(report.path, 1):
        spent = spent + record.cost
        gain = f"{100 * (record.after.score - record.before.score):+.1f}"
        rows.append(row(index, record.lever, record.after, gain, "yes" if record.accepted else "no", spent))
    gold = ["gold"] if report.has_gold else []
    columns = ["round", "lever", *gold, "score", "gain", "kept", "rollouts", "time"]
    return Table(f"The winner's path {report.winner} on dev", columns, rows)


def _lengths(report: StudyReport) -> Table:
    """Mean completion length of each predictor on dev, round by round."""
    states = [report.path[0].before, *(record.after for record in report.path)]
    names = ["base", *(f"{i} {record.lever}" for i, record in enumerate(report.path, 1))]
    rows = [
        Row([predictor, *(number(state.completion_tokens.get(predictor)) for state in states)])
        for predictor in states[0].completion_tokens
    ]
    return Table("Completion length on that path, in tokens", ["predictor", *names], rows)


def _thresholds(report: StudyReport) -> Table:
    rows = []
    for threshold in report.thresholds:
        if threshold.lever is None:
            rows.append(Row([level(threshold.at), "not reached", "", "", "", ""], "faint"))
        elif threshold.lever == "base":
            rows.append(Row([level(threshold.at), "base", "0", "", "", ""]))
        else:
            round_number = "" if threshold.round is None else str(threshold.round)
            rows.append(
                Row([level(threshold.at), threshold.lever, round_number, *cost_texts(threshold.cost or Cost())])
            )
    title = f"First above the level on the winner's path ({measure(report)}, dev)"
    return Table(title, ["level", "lever", "round", "rollouts", "TFLOPs", "time"], rows)


def _levels(report: StudyReport) -> Table:
    """The least that each arm had spent, in any trial, when dev first was at the level."""
    names = [name for name in ARMS if name != "base"]
    rows = []
    for reached in report.levels:
        stops = [reached.cheapest.get(name) for name in names]
        cells = [f"{along(report.axis, s.cost)} ({s.schedule})" if s else "not reached" for s in stops]
        if "base" in reached.cheapest:
            cells = ["the base is there"] * len(names)
        target = " (target)" if reached.at == report.target else ""
        rows.append(Row([level(reached.at) + target, *cells], "" if reached.cheapest else "faint"))
    columns = ["level", *(ARMS[name] for name in names)]
    return Table(f"Least cost to a level ({measure(report)}, dev)", columns, rows, left=frozenset(columns))


def _front(report: StudyReport) -> Table:
    """What cannot be had better for less: by rising cost."""
    rows = []
    for stop in report.front:
        trial = "" if stop.trial < 0 else str(stop.trial)
        golds = [share(stop.dev)] if report.has_gold else []
        tests = [share(stop.test)] if report.finished else []
        cells = [stop.schedule or "base", trial, along(report.axis, stop.cost), share(stop.dev_score), *golds, *tests]
        rows.append(Row(cells))
    golds = ["dev gold"] if report.has_gold else []
    tests = [f"test {measure(report)}"] if report.finished else []
    columns = ["schedule", "trial", "cost", "dev score", *golds, *tests]
    return Table("The best on dev for its cost, any trial", columns, rows)


def _elsewhere(report: StudyReport) -> Table:
    """Other tasks under the trained weights: what training for this one did to them."""
    rows = [Row([c.task, c.arm, share(c.before), share(c.after), effect_text(c.change)]) for c in report.elsewhere]
    columns = ["task", "weights of", "own", "these", "change [95 %]"]
    most = max(c.examples for c in report.elsewhere)
    title = f"Other tasks under the trained weights (dev, n = {most} or fewer)"
    if len({c.examples for c in report.elsewhere}) == 1:
        title = f"Other tasks under the trained weights (dev, n = {most})"
    return Table(title, columns, rows, left=frozenset(TEXT | {"task", "weights of"}))


def _trials(report: StudyReport) -> Table:
    rows = []
    priced = bool(report.cost.dollars)

    def costs(cost: Cost) -> list[str]:
        return [*cost_texts(cost), *([dollars(cost)] if priced else [])]

    best = winning_trial(report)
    for arm in sorted(report.arms, key=lambda arm: -arm.dev):
        cells = [str(arm.trial), arm.schedule, share(arm.dev), share(arm.test), *costs(arm.cost)]
        rows.append(Row(cells, "best" if arm.trial == best else ""))
    foot = [Row(["sweep", "all once", "", "", *costs(report.cost)], "faint")]
    if report.finished:
        foot.append(
            Row(
                [
                    "report",
                    "its end",
                    "",
                    "",
                    *costs(report.reading_cost),
                ],
                "faint",
            )
        )
    title = f"Every trial ({measure(report)}; a shared round is charged in full)"
    columns = ["trial", "schedule", "dev", "test", "rollouts", "TFLOPs", "time", *(["$"] if priced else [])]
    return Table(title, columns, rows, foot)


def _estimate_columns(report: StudyReport) -> list[str]:
    return ["gold [95 %]", "score [95 %]"] if report.has_gold else ["score [95 %]"]


def _estimates(report: StudyReport, cell: Cell) -> list[str]:
    return [interval(e) for e in ([cell.gold, cell.score] if report.has_gold else [cell.score])]
