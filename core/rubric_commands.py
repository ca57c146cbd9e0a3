"""``--rubric`` on the commands that score, and ``colever rubric``: what looks at a rubric itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colever import console
from colever.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from colever.tasks.rubric_check import CheckedRow, RubricCheck

rubric_app = typer.Typer(
    no_args_is_help=True,
    help="A task's rubric, or a file's: what it pays for.",
    epilog="Example: colever rubric check arithmetic",
)

DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Rows of gsm8k, banking77, …: a file or folder; default: the hub."),
]
RubricOption = Annotated[
    str | None,
    typer.Option("--rubric", metavar="FILE", help="Score by this TOML or YAML file (docs/rubrics.md), not by TASK's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]


@rubric_app.callback()
def _rubric() -> None:
    """A group even where it holds one command."""


@rubric_app.command("check", epilog="Example: colever rubric check my_task.py:task --rubric strict.toml --strict")
def rubric_check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A bundled task, or a file as my_task.py:task.")],
    data: DataOption = None,
    rubric: RubricOption = None,
    split: Annotated[str, typer.Option("--split", help="train, dev, test or a watched split.")] = "train",
    limit: Annotated[int, typer.Option("--limit", min=2, help="Only the first N examples.")] = 64,
    most: Annotated[
        float, typer.Option("--most", min=0, max=1, help="Share of a labelled answer's total that a bad one may get.")
    ] = 0.5,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 where there is a warning.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score labelled answers and bad ones made of them, without a model, and say what the rubric pays for."""
    from colever.studies import interruptible
    from colever.tasks.load import load_task
    from colever.tasks.rubric_check import check_rubric

    loaded = load_task(task, data, rubric)
    if split not in (accepted := ("train", "dev", "test", *loaded.watched)):
        raise UsageError(f"--split {split!r}: accepted: {', '.join(accepted)}")
    with interruptible("nothing was stored"):
        found = check_rubric(loaded, split, limit, most)
    if as_json:
        console.show_json(_as_json(found))
    else:
        _show(found)
    if strict and found.warnings:
        raise typer.Exit(1)


def _show(found: RubricCheck) -> None:
    from rich.markup import escape

    size = found.rows[0].answers
    console.show(f"[bold]{escape(found.task)}[/] · {escape(found.split)}: answers made from {size} examples, no model")
    console.show(_table(found))
    for line in found.warnings:
        console.show(f"[bold yellow]warning:[/] {escape(line)}", whole_lines=True)
    for line in found.notes:
        console.show(f"[dim]note:[/] {escape(line)}", whole_lines=True)
    if not found.warnings:
        console.show("[green]no warnings[/]")


def _table(found: RubricCheck) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    criteria = list(dict.fromkeys(name for row in found.rows for name in row.by_criterion))
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    drawn.add_column("answers")
    for name in ("total", "gold", *criteria):
        drawn.add_column(Text(name), justify="right")
    drawn.add_column("unread", justify="right")  # could not be read: a policy failure, 0 on everything
    for row in found.rows:
        values = [row.total, row.gold, *(row.by_criterion.get(name) for name in criteria)]
        drawn.add_row(Text(row.name), *("–" if v is None else f"{v:.2f}" for v in values), _unread(row))
    return drawn


def _unread(row: CheckedRow) -> str:
    return "" if not row.failures else "all" if row.failures == row.answers else str(row.failures)


def _as_json(found: RubricCheck) -> dict[str, Any]:
    kept = [f.name for f in dataclasses.fields(found.rows[0]) if f.name != "scores"]
    rows = [{name: getattr(row, name) for name in kept} for row in found.rows]
    return {**dataclasses.asdict(dataclasses.replace(found, rows=())), "rows": rows}
