"""Which predictors a criterion names: of one that the program has not nothing is ever read, and the value is 0."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from colever.tasks.criteria import KINDS
from colever.tasks.rubric import Criterion

FIELDS = ("field", "observations", "passages", "outputs")  # settings that may be ``predictor.field``


def strange_predictor(criterion: Criterion, predictors: Container[str]) -> tuple[str, str] | None:
    """(setting, predictor) of the first that is none of these; of functions that are no kind nothing is known."""
    named = [("predictor", criterion.predictor), *_named(criterion.check)]
    return next(((setting, name) for setting, name in named if name and name not in predictors), None)


def _named(check: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(check, tuple(KINDS.values())):
        return
    yield "predictor", getattr(check, "predictor", "")
    for setting in FIELDS:
        given = getattr(check, setting, None) or ()
        for field in (given,) if isinstance(given, str) else given:
            yield setting, field.rpartition(".")[0]
