"""Criteria ready to use, by kind; a rubric's file names them so."""

from __future__ import annotations

from colever.tasks.criteria.match import Exact

KINDS: dict[str, type] = {"exact": Exact}
