"""Messages in, completions out: in-process models with exact tokens and log-probabilities.

``seed_lm`` and ``engine_lm`` are here as well as in ``colever``; they load what they need when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {"engine_lm": "colever.engines.lm", "seed_lm": "colever.engines.lm"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'colever.engines' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    return getattr(import_module(_PUBLIC[name]), name)
