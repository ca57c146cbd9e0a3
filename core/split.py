"""A split as others know it: by name, size and digest, without its examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """One of a task's splits. ``digest`` is of the ids and examples, in order."""

    name: str
    digest: str
    examples: int
    fields: tuple[str, ...]  # of the first example
