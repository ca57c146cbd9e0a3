"""The ways of pulling the prompt lever, one file each. ``way_of`` finds one by its name."""

from __future__ import annotations

from importlib import import_module

from colever.config import PROMPT_WAYS
from colever.optimizers.ways.way import Way


def way_of(name: str) -> Way:
    """The way of that name, or a user's own teleprompter as ``module:attr`` or ``file.py:attr``.

    Raises UsageError for a name that is none of them.
    """
    if name not in PROMPT_WAYS:
        from colever.optimizers.ways.teleprompter import UsersTeleprompter

        return UsersTeleprompter(name)
    module = import_module(f"colever.optimizers.ways.{name}")
    way: Way = module.WAY
    return way
