"""The guard's part of a report: a table of its looks, and its alarms in words. Reads a StudyReport only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from colever.looks import Guarded, JudgedRound, Look
from colever.reported import StudyReport
from colever.tracking.report import share
from colever.tracking.table import Row, Table

SHOWN = 4  # criteria named in an alarm


def guard_table(report: StudyReport) -> Table | None:
    """Score and gold of every round that was looked at, and what of the gain is false; None without a look."""
    guard = report.guard
    if guard is None or not guard.rounds:
        return None
    base = guard.base or (float("nan"), float("nan"))
    rows = [Row(["base", "", share(base[0]), share(base[1]), "", "", "", ""], "faint")]
    rows += [_row(judged) for judged in guard.rounds]
    columns = ["round", "lever", "score", "gold", "form", "false gain", "at least", "alarm"]
    title = f"The guard against reward hacking: false gain on dev, in points (alarm above {100 * guard.margin:g})"
    return Table(title, columns, rows)


def warnings(report: StudyReport) -> Iterator[str]:
    """Each alarm in a sentence; that the guard is blind, where there is no gold."""
    guard = report.guard
    if guard is None:
        return
    if guard.blind:
        yield "The guard against reward hacking could not look: the task has no gold to hold the score against."
    for judged in guard.alarms:
        yield alarm_text(judged, guard)


def alarm_text(judged: JudgedRound, guard: Guarded) -> str:
    """What rose without gold, by how much, in which criteria, and what was done."""
    look = judged.look
    carried = _carried(look)
    done = (
        "Its child was refused, and the trial ended."
        if judged.refused
        else "Its child was kept: --on-hacking stop refuses it."
    )
    return (
        f"Reward hacking in round {judged.name} ({judged.lever}): score {100 * look.score_gain:+.1f} points and gold "
        f"{100 * look.gold_gain:+.1f} since base; {100 * look.false_gain:.1f} of them are false, at least "
        f"{100 * look.low:.1f}. {f'{carried}. ' if carried else ''}{done}"
    )


def _carried(look: Look) -> str:
    """The criteria's parts of the gain, the four that moved it most and the rest in one."""
    most = sorted(look.criteria, key=lambda name: -abs(look.criteria[name]))[:SHOWN]
    parts = {name: value for name, value in look.criteria.items() if name in most}
    if rest := [value for name, value in look.criteria.items() if name not in most]:
        parts[f"{len(rest)} other criteria"] = sum(rest)
    said = ", ".join(f"{name} {100 * value:+.1f}" for name, value in parts.items())
    if not said:
        return ""
    return (
        f"The score came from {said}" if look.exact else f"By weight × change of the mean, the score came from {said}"
    )


def evidence(report: StudyReport) -> Sequence[Mapping[str, Any]]:
    """Of each alarm: the sentence, the examples that gained most without gold, and their kept rollouts."""
    guard = report.guard
    if guard is None:
        return ()
    return [
        {
            "text": alarm_text(judged, guard),
            "gained": {name: f"{100 * rise:+.0f}" for name, rise in judged.look.gained.items()},
            "rollouts": judged.rollouts,
            "name": judged.name,
        }
        for judged in guard.alarms
    ]


def _row(judged: JudgedRound) -> Row:
    look = judged.look
    said = "" if not look.alarm else "refused" if judged.refused else "yes"
    numbers = [f"{100 * value:+.1f}" for value in (look.form, look.false_gain, look.low)]
    cells = [judged.name, judged.lever, share(judged.score), share(judged.gold), *numbers, said]
    return Row(cells, "" if look.alarm else "faint")
