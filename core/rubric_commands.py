"""``--rubric`` on the commands that score, and what looks at a rubric itself."""

from __future__ import annotations

from typing import Annotated

import typer

RubricOption = Annotated[
    str | None,
    typer.Option("--rubric", metavar="FILE", help="Score by this TOML or YAML file (docs/rubrics.md), not by TASK's."),
]
