"""A run's description in MLflow, in Markdown: the verdict first, since the UI folds it to three lines."""

from __future__ import annotations

from collections.abc import Sequence

from colever.reported import Cell, Estimate, StudyReport
from colever.tracking.hacking import warnings
from colever.tracking.report import ARMS, CONDITIONAL, EFFECTS, main_effects, spelled, verdict
from colever.types import TrialRecord


def study_note(report: StudyReport) -> str:
    """The verdict, then the arms on test and the effects."""
    lines = [f"**{verdict(report)}**", "", *(f"{line}\n" for line in warnings(report))]
    measures = ["gold", "score"] if report.has_gold else ["score"]
    rows = []
    for name, cell in report.table.items():
        rows.append([ARMS.get(name, name), cell.schedule or "–", *(_interval(_measure(cell, m)) for m in measures)])
    lines += _table(["arm on test", "schedule", *(f"{m}, 95 % interval" for m in measures)], rows)
    if report.effects:
        effects = [
            [
                EFFECTS.get(name, name),
                f"{100 * e.value:+.1f}",
                f"{100 * e.low:+.1f} to {100 * e.high:+.1f}",
                "" if e.resolved else "unresolved",
            ]
            for name, e in main_effects(report).items()
        ]
        lines += ["", *_table([f"effect, points of {measures[0]}", "value", "95 % interval", ""], effects)]
    return "\n".join([*lines, "", CONDITIONAL])


def trial_note(record: TrialRecord) -> str:
    """From what to what on dev, by which rounds, for how many rollouts."""
    if not record.rounds or record.dev is None:
        return f"**{record.schedule}: {record.state}, no round ended**"
    base = record.rounds[0].before
    gold = (
        f", gold {100 * base.gold:.1f} → {100 * record.dev.gold:.1f} %"
        if base.gold is not None and record.dev.gold is not None
        else ""
    )
    head = (
        f"**{spelled(record.schedule)}: dev score {100 * base.score:.1f} → {100 * record.dev.score:.1f} %{gold}, "
        f"{record.cost.rollouts:,} rollouts**"
    )
    rows = [
        [
            str(i),
            r.lever,
            f"{100 * (r.after.score - r.before.score):+.1f}",
            "yes" if r.accepted else "no",
            f"{r.cost.rollouts:,}",
        ]
        for i, r in enumerate(record.rounds, 1)
    ]
    return "\n".join([head, "", *_table(["round", "lever", "gain in dev score, points", "kept", "rollouts"], rows)])


def _measure(cell: Cell, name: str) -> Estimate | None:
    return cell.gold if name == "gold" else cell.score


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not pulled"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]
