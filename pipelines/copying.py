"""A cheap copy of a program for one rollout; knows DSPy modules, nothing of examples or scores."""

from __future__ import annotations

import copy
from typing import Any

import dspy


def copy_program(program: dspy.Module, lm: Any) -> dspy.Module:
    """An independent copy whose predictors all use ``lm``; demos and signatures are shared, their lists are not."""
    predictors = program.predictors()
    shared: dict[int, Any] = {}
    for predictor in predictors:
        for value in (predictor.demos, predictor.lm, predictor.train, predictor.traces):
            shared[id(value)] = value
    try:
        fresh = copy.deepcopy(program, shared)
    except Exception:  # noqa: BLE001 - an attribute that cannot be copied: DSPy's way shares such ones
        fresh = program.deepcopy()
    for predictor in fresh.predictors():
        predictor.demos = list(predictor.demos)
        predictor.lm = lm
    return fresh
