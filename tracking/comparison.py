"""Studies side by side, in the terminal, as JSON and as a picture. Reads comparison rows only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from colever.comparison import OWN, ComparisonRow
from colever.reported import Estimate
from colever.tracking import figures
from colever.tracking.report import ARMS, EFFECTS, cost_texts, effect_text
from colever.tracking.table import TEXT, Row, Table
from colever.tracking.terminal import titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE = "One training seed: intervals are over test examples, and another seed may differ by more."
SEVERAL = "Several training seeds: intervals are over seeds and test examples."
CHOSEN = "An arm is the best on dev that its levers made, in each seed; won: the lever that is ahead alone."
TARGET = "Target: the cheapest way there on dev, with its mean rollouts and time over the seeds that got there."
LEFT = frozenset(TEXT | {"task", "rubric", "model", "won", "target"})
EARNED = ("prompt", "weights", "interaction", "ahead")
NAMES = EFFECTS | {"ahead": "weights over prompt"}


def render(rows: Sequence[ComparisonRow]) -> RenderableType:
    """The arms, which lever won and the cost to the target, and what each lever earned."""
    parts = [part for table in (_arms(rows), _won(rows), _effects(rows)) for part in titled(table)]
    return Group(*parts, *(Text(f"· {line}", style="dim") for line in footnotes(rows)))


def footnotes(rows: Sequence[ComparisonRow]) -> list[str]:
    """What the tables' numbers are over, and what would resolve what is not."""
    notes = []
    for measure, gold in (("Gold", True), ("Rubric score", False)):
        if tasks := sorted({row.task for row in rows if row.gold is gold}):
            notes.append(f"{measure}: {', '.join(tasks)}.")
    notes += [SINGLE] * any(len(r.seeds) == 1 for r in rows) + [SEVERAL] * any(len(r.seeds) > 1 for r in rows)
    notes += [CHOSEN, TARGET]
    for row in rows:
        notes += [f"{_label(row, rows)}, {NAMES.get(name, name)}: {text}." for name, text in row.needed.items()]
    return notes


def to_json(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Fractions in [0, 1], costs as fields of Cost, null for what was not pulled or not reached."""
    return [dataclasses.asdict(row) | {"won": row.won or None} for row in rows]


def draw(rows: Sequence[ComparisonRow]) -> Figure:
    """Bars of the arms for each row, with intervals."""
    figure, (axis,) = figures.canvas(1, "Each arm on test, in percent, with 95 % intervals")
    seen: set[str] = set()
    for place, row in enumerate(rows):
        for i, (name, cell) in enumerate(row.table.items()):
            if cell is None:
                continue
            x, value = place + (i - 1.5) * 0.2, 100 * cell.value
            shown = None if name in seen else ARMS[name]
            seen.add(name)
            axis.bar(x, value, 0.18, color=figures.LEVER_COLOURS[name], label=shown)
            whisker = [[value - 100 * cell.low], [100 * cell.high - value]]
            axis.errorbar(x, value, yerr=whisker, color=figures.INK, capsize=2, linewidth=1)
    axis.set_xticks(range(len(rows)), [_label(row, rows).replace(" · ", "\n") for row in rows])
    axis.set_ylim(0, 104)
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _label(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    return " · ".join(_names(row, rows))


def _names(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> list[str]:
    return [row.task, *([row.rubric] if _rubrics_tell(rows) else []), row.model]


def _named(rows: Sequence[ComparisonRow]) -> list[str]:
    return ["task", *(["rubric"] if _rubrics_tell(rows) else []), "model"]


def _rubrics_tell(rows: Sequence[ComparisonRow]) -> bool:
    """Whether the rubric has to be said: not where each task has its own, and one row for each model."""
    own = all(row.rubric.split()[0] == OWN for row in rows)
    return not own or len({(row.task, row.model) for row in rows}) < len(rows)


def _arms(rows: Sequence[ComparisonRow]) -> Table:
    lines = [Row([*_names(row, rows), *(_percent(row.table.get(name)) for name in ARMS)]) for row in rows]
    columns = [*_named(rows), *ARMS.values()]
    return Table("Arms on test, in percent [95 %]", columns, lines, left=LEFT, wrap=frozenset(ARMS.values()))


def _won(rows: Sequence[ComparisonRow]) -> Table:
    lines = []
    for row in rows:
        reached = row.reached
        how, spent = f"{100 * row.target:g} %: none", ("–", "–", "–")
        if reached is not None and reached.cost is not None:
            of = "" if reached.seeds == len(row.seeds) else f", {reached.seeds} of {len(row.seeds)}"
            how, spent = f"{100 * row.target:g} %: {reached.lever}{of}", cost_texts(reached.cost)
        lines.append(Row([*_names(row, rows), str(len(row.seeds)), row.won or "unresolved", how, spent[0], spent[2]]))
    columns = [*_named(rows), "seeds", "won", "target", "rollouts", "time"]
    return Table("Which lever won, and the cost to the target", columns, lines, left=LEFT)


def _effects(rows: Sequence[ComparisonRow]) -> Table:
    names = [NAMES[name] for name in EARNED]
    lines = [Row([*_names(row, rows), *(effect_text(row.effects.get(name)) for name in EARNED)]) for row in rows]
    columns, title = [*_named(rows), *names], "What each lever earned on test, in points [95 %]"
    return Table(title, columns, lines, left=LEFT, wrap=frozenset(names))


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not pulled"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
