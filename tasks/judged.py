"""A criterion's value with what was said for it. Knows numbers and words; nothing of who gave them."""

from __future__ import annotations

from collections.abc import Sequence


class Judged(float):
    """A value in [0, 1] with a reason, and the single votes that it was made of; a check may return it for a number."""

    reason: str
    votes: tuple[float, ...]

    def __new__(cls, value: float, reason: str = "", votes: Sequence[float] = ()) -> Judged:
        made = super().__new__(cls, value)
        made.reason, made.votes = reason, tuple(votes)
        return made
