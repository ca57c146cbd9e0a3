"""Criteria ready to use, by kind; a rubric's file names them so."""

from __future__ import annotations

from colever.tasks.criteria.judge import Judge
from colever.tasks.criteria.match import Exact
from colever.tasks.criteria.preference import Preference, Ranking

KINDS: dict[str, type] = {"exact": Exact, "judge": Judge, "preference": Preference, "ranking": Ranking}
