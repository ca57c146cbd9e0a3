"""Criteria ready to use, by kind; a rubric's file names them so."""

from __future__ import annotations

from colever.tasks.criteria.match import Exact
from colever.tasks.criteria.unit_tests import UnitTests

KINDS: dict[str, type] = {"exact": Exact, "unit_tests": UnitTests}
