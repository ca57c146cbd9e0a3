"""A report in the terminal: the verdict first, then the tables, then the footnotes. Knows rich; computes nothing."""

from __future__ import annotations

from rich import box
from rich import table as rich_table
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from colever.reported import StudyReport
from colever.tracking.hacking import warnings
from colever.tracking.report import footnotes, verdict
from colever.tracking.table import Table
from colever.tracking.tables import tables

STYLES = {"": None, "best": "bold green", "faint": "dim"}


def render(report: StudyReport) -> RenderableType:
    """The whole report as one rich renderable; reads well from 80 columns on."""
    parts: list[RenderableType] = [Text(verdict(report), style="bold"), Text()]
    parts += [Text(line, style="bold red") for line in warnings(report)]
    for table in tables(report).values():
        parts += titled(table)
    parts += [Text(f"· {line}", style="dim") for line in footnotes(report)]
    return Group(*parts)


def titled(table: Table) -> list[RenderableType]:
    """A table below its title."""
    return [Text(table.title, style="bold cyan"), Padding(_drawn(table), (0, 0, 1, 2))]


def _drawn(table: Table) -> rich_table.Table:
    """Text columns left, numbers right; what comes from data is never read as markup."""
    drawn = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in table.columns:
        justify = "left" if column in table.left else "right"
        drawn.add_column(Text(column), justify=justify, no_wrap=column not in table.wrap)  # type: ignore[arg-type]
    for row in table.rows:
        drawn.add_row(*map(Text, row.cells), style=STYLES[row.style])
    if table.foot:
        drawn.add_section()
    for row in table.foot:
        drawn.add_row(*map(Text, row.cells), style=STYLES[row.style])
    return drawn
