"""A program's prompts as data: read from its predictors, set on a fresh program.

Knows DSPy's predictors; nothing of candidates' weights, scores or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from colever.errors import UsageError
from colever.pipelines.nearest import nearest_of, show_nearest
from colever.types import PredictorPrompt


def read_prompts(program: dspy.Module) -> dict[str, PredictorPrompt]:
    """Instruction and demos of each predictor, by name, in the program's order."""
    return {
        name: PredictorPrompt(p.signature.instructions, tuple(_plain(d) for d in p.demos), nearest_of(p))
        for name, p in program.named_predictors()
    }


def apply_prompts(program: dspy.Module, prompts: Mapping[str, PredictorPrompt]) -> dspy.Module:
    """Set instructions and demos on ``program`` and return it; predictors that ``prompts`` leaves out stay.

    Raises UsageError for a name that is no predictor of the program.
    """
    predictors = dict(program.named_predictors())
    if unknown := sorted(set(prompts) - set(predictors)):
        raise UsageError(f"no predictor named {', '.join(unknown)}; the program has {', '.join(predictors) or 'none'}")
    for name, prompt in prompts.items():
        predictor = predictors[name]
        if prompt.instructions != predictor.signature.instructions:
            predictor.signature = predictor.signature.with_instructions(prompt.instructions)
        predictor.demos = [dspy.Example(**demo) for demo in prompt.demos]
        show_nearest(predictor, prompt.nearest)
    return program


def _plain(demo: Any) -> dict[str, Any]:
    return dict(demo.toDict() if hasattr(demo, "toDict") else demo)
