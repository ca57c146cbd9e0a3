"""Colever: prompt-and-weight co-optimization of DSPy programs against one rubric.

The public names load what they need when they are first used, so that ``import colever`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Candidate": "colever.types",
    "Criterion": "colever.tasks.rubric",
    "Rubric": "colever.tasks.rubric",
    "Score": "colever.types",
    "Task": "colever.tasks.task",
    "TransformersEngine": "colever.engines.transformers",
    "WeightTeleprompter": "colever.optimizers.teleprompter",
    "agent_program": "colever.pipelines.agent",
    "engine_lm": "colever.optimizers.provider",
    "load": "colever.ship.program",
    "load_task": "colever.tasks.load",
    "run_rollouts": "colever.pipelines.rollout",
    "seed_lm": "colever.optimizers.provider",
}
_FOLDERS = ("engines", "optimizers", "pipelines", "tasks", "tracking")

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:  # `import colever` alone gives `colever.engines.seed_lm`
        return import_module(f"colever.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'colever' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
