"""``--rubric`` on the commands that score, and ``colever rubric``: what looks at a rubric itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colever import console
from colever.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from colever.optimizers.rescore import Rescored, Rescoring
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
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="What samples: transformers, in this process, or vllm (docs/vllm.md).")
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
    """Score labelled answers and bad ones made of them, without a model, and say what the rubric pays for.

    Exit status 1 where the rubric can't work: it raises on a labelled answer, or pays 0 for all of them.
    """
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
    if found.faults or (strict and found.warnings):
        raise typer.Exit(1)


def _show(found: RubricCheck) -> None:
    from rich.markup import escape

    size = found.rows[0].answers
    console.show(f"[bold]{escape(found.task)}[/] · {escape(found.split)}: answers made from {size} examples, no model")
    console.show(_table(found))
    for line in found.faults:
        console.show(f"[bold red]error:[/] {escape(line)}", whole_lines=True)
    for line in found.warnings:
        console.show(f"[bold yellow]warning:[/] {escape(line)}", whole_lines=True)
    for line in found.notes:
        console.show(f"[dim]note:[/] {escape(line)}", whole_lines=True)
    if not found.faults and not found.warnings:
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
        drawn.add_row(Text(row.name), *map(_number, values), _unread(row))
    return drawn


def _unread(row: CheckedRow) -> str:
    return "" if not row.failures else "all" if row.failures == row.answers else str(row.failures)


def _as_json(found: RubricCheck) -> dict[str, Any]:
    kept = [f.name for f in dataclasses.fields(found.rows[0]) if f.name != "scores"]
    rows = [{name: getattr(row, name) for name in kept} for row in found.rows]
    return {**dataclasses.asdict(dataclasses.replace(found, rows=())), "rows": rows}


def rescore_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, or a task for its latest study.")],
    which: Annotated[
        str, typer.Argument(metavar="[ROUND]", help="base, winner, or TRIAL.ROUND: 2.1 is trial 2's first.")
    ] = "winner",
    rubric: Annotated[
        str | None,
        typer.Option("--rubric", metavar="FILE", help="TOML or YAML; default: the study's own, as it is now."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="dev; of base and winner also test or a watched one.")] = "dev",
    home: Annotated[Path, typer.Option("--home", envvar="COLEVER_HOME", help="Folder of studies.")] = Path("mlruns"),
    as_json: JsonOption = False,
) -> None:
    """Score the rollouts kept of a round again, by another rubric, without a model."""
    from colever.optimizers.rescore import rescore
    from colever.optimizers.study import find_study
    from colever.stored import task_of

    folder = find_study(home, name)
    found = rescore(folder, task_of(folder, rubric), which, split)
    if as_json:
        console.show_json({**dataclasses.asdict(found), "means": _means(found)})
    else:
        _show_rescored(found)


def _show_rescored(found: Rescoring) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    where = f"[bold]{escape(found.study)}[/] · {escape(found.which)} · {escape(found.split)}"
    console.show(f"{where}: {found.kept} of {found.evaluated} rollouts were kept, and these are scored again")
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    drawn.add_column("example")
    for name in ("old", "new", *found.criteria):
        drawn.add_column(Text(name), justify="right")
    for row in found.rollouts:
        cells = [_change(row.old_by_criterion.get(name), row.by_criterion.get(name)) for name in found.criteria]
        drawn.add_row(Text(row.example_id), _number(row.old), _number(row.new), *cells)
    means = _means(found)
    drawn.add_row("[bold]mean[/]", *(_number(means[name]) for name in ("old", "new", *found.criteria)))
    console.show(drawn)
    for name, reason in found.lacking.items():
        console.show(f"[bold yellow]warning:[/] {escape(f'{name} gives no value: {reason}')}", whole_lines=True)
    for line in found.notes:
        console.show(f"[dim]note:[/] {escape(line)}", whole_lines=True)


def _means(found: Rescoring) -> dict[str, float | None]:
    """Old and new over the rollouts that have both, criteria over those that have them."""
    both = [row for row in found.rollouts if row.old is not None and row.new is not None]
    made = {"old": _mean([row.old for row in both]), "new": _mean([row.new for row in both])}
    return made | {name: _mean(_values(found.rollouts, name)) for name in found.criteria}


def _values(rows: Sequence[Rescored], name: str) -> list[float | None]:
    return [row.by_criterion[name] for row in rows if name in row.by_criterion]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _change(old: float | None, new: float | None) -> str:
    return _number(new) if old is None or new is None or old == new else f"{old:.2f} → {new:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
