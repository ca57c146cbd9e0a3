"""Any value that a program or a model makes, as JSON has it. What cannot be told is said in words; nothing is raised.

The rubric reads the value itself: what is kept of one that is nested too deep, or holds itself, is shorter, and its
rollout has the score that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

DEEPEST = 100  # lists and mappings in each other; parsers and encoders end between 300 and 1,000


def plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """``value`` as JSON has it; an enum's member is its value, as DSPy shows it; what JSON lacks becomes its text.

    ``above``: the identities of what it stands in.
    """
    if isinstance(value, Enum):
        return plain(value.value, above)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if id(value) in above:
        return f"({type(value).__name__} that holds itself)"
    if len(above) == DEEPEST:
        return f"({type(value).__name__}, nested too deep)"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return {_text(k): plain(v, inside) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v, inside) for v in value]
    return plain(_dumped(value), inside) if hasattr(value, "model_dump") else _text(value)


def _dumped(value: Any) -> Any:
    try:
        return value.model_dump()
    except Exception as error:  # noqa: BLE001 - the boundary to a type of the user's: a model that holds itself, too
        return _untold(value, error)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - the boundary to a type of the user's
        return _untold(value, error)


def _untold(value: Any, error: Exception) -> str:
    return f"({type(value).__name__} that cannot be shown: {type(error).__name__})"
