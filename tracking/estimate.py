"""What sweeps would cost, in the terminal and as JSON. Reads estimates only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from colever.tracking.report import cost_texts, dollars
from colever.tracking.table import Row, Table
from colever.tracking.terminal import titled
from colever.types import Cost

NOTES = (
    "From a probe of the base, and of two updates where weights are trained. Prompts grow with demos, lengths change.",
    "A searched trial is taken as one round of each lever that no other trial shares.",
)


class Line(Protocol):
    schedule: str
    new_rounds: int
    cost: Cost


class Estimated(Protocol):
    rows: Sequence[Line]
    search: Cost
    reading: Cost
    probe: Cost
    ways: Mapping[str, Cost]


def render(estimates: Mapping[str, Estimated]) -> RenderableType:
    """A table for each study, and in all."""
    parts = [
        part
        for name, found in estimates.items()
        for table in (_table(name, found), *([_ways(found)] if found.ways else []))
        for part in titled(table)
    ]
    if len(estimates) > 1:
        whole = sum((e.search + e.reading for e in estimates.values()), Cost())
        parts.append(Text(f"In all: {', '.join(_texts(whole))}", style="bold"))
    return Group(*parts, *(Text(f"· {line}", style="dim") for line in NOTES))


def to_json(found: Estimated) -> dict[str, Any]:
    """Costs as fields of Cost."""
    rows = [{"schedule": r.schedule, "new_rounds": r.new_rounds, "cost": vars(r.cost)} for r in found.rows]
    ways = {name: vars(cost) for name, cost in found.ways.items()}
    return {"trials": rows, "ways": ways} | {n: vars(getattr(found, n)) for n in ("search", "reading", "probe")}


def _table(name: str, found: Estimated) -> Table:
    columns = ["trial", "schedule", "rounds", "rollouts", "tokens", "TFLOPs", "time"]
    columns += ["dollars"] if found.search.dollars else []
    columns += ["judge calls"] if found.search.judge_calls else []

    def of(cost: Cost) -> list[str]:
        price = [dollars(cost)] if found.search.dollars else []
        return [*_columns(cost)[:4], *price, *([f"{cost.judge_calls:,}"] if found.search.judge_calls else [])]

    rows = [
        Row([str(i), row.schedule or "searched", str(row.new_rounds), *of(row.cost)])
        for i, row in enumerate(found.rows)
    ]
    foot = [
        Row(["sweep", "and base", "", *of(found.search)], "best"),
        Row(["report", "reads test", "", *of(found.reading)], "faint"),
        Row(["probe", "done", "", *of(found.probe)], "faint"),
    ]
    return Table(f"{name}: what it would cost", columns, rows, foot)


def _ways(found: Estimated) -> Table:
    """A pull of the prompt lever, way by way."""
    rows = [
        Row(
            [
                name,
                f"{cost.rollouts:,}",
                f"{cost.proposer_calls:,}",
                cost_texts(cost)[1],
                *([dollars(cost)] if cost.dollars else []),
            ]
        )
        for name, cost in found.ways.items()
    ]
    priced = ["dollars"] if any(cost.dollars for cost in found.ways.values()) else []
    return Table(
        "one pull of the prompt lever, at most", ["way", "rollouts", "proposer calls", "TFLOPs", *priced], rows
    )


def _columns(cost: Cost) -> list[str]:
    rollouts, flops, time = cost_texts(cost)
    price = [dollars(cost)] if cost.dollars else []
    return [rollouts, f"{cost.tokens / 1e6:.2f} M", flops, time, *price]


def _texts(cost: Cost) -> list[str]:
    units = ("rollouts", "tokens", "TFLOPs", "", "")
    return [f"{value} {unit}".strip() for value, unit in zip(_columns(cost), units, strict=False)]
