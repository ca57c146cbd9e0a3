"""A table of a report as text. Knows no terminal and no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["", "best", "faint"]
TEXT = set("arm schedule way part its effect lever round trial predictor instruction criterion".split())


@dataclass(frozen=True)
class Row:
    """One cell of text per column; ``best`` is the winner, ``faint`` what counts less."""

    cells: Sequence[str]
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """``foot`` are rows that sum up. Columns named in ``left`` hold text, ``wrap`` long text; the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    foot: Sequence[Row] = ()
    left: frozenset[str] = frozenset(TEXT)
    wrap: frozenset[str] = frozenset()
