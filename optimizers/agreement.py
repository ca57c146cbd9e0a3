"""How far several votes on the same things agree: Krippendorff's alpha for ordered values. Knows numbers only.

Source: Krippendorff, *Computing Krippendorff's Alpha-Reliability* (2011), the ordinal difference function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def alpha(units: Sequence[Sequence[float]]) -> float | None:
    """1: votes on each thing agree; 0: as chance would have it; below: worse than chance.

    ``units``: the votes on each thing; of those with fewer than two nothing follows. None where nothing can be said: no
    thing has two votes, or all votes are one and the same value.
    """
    counted = [Counter(votes) for votes in units if len(votes) > 1]
    totals = sum(counted, Counter[float]())
    if len(totals) < 2:
        return None
    number = sum(totals.values())
    apart = _distances(totals)
    observed = sum(
        _pairs(votes, apart) / (sum(votes.values()) - 1) for votes in counted
    ) / number  # fmt: skip
    expected = _pairs(totals, apart) / (number * (number - 1))
    return 1 - observed / expected


def _distances(totals: Counter[float]) -> dict[tuple[float, float], float]:
    """Squared numbers of votes that lie between two values, half of each end's among them."""
    values = sorted(totals)
    apart = {}
    for i, low in enumerate(values):
        for j in range(i + 1, len(values)):
            between = sum(totals[v] for v in values[i : j + 1]) - (totals[low] + totals[values[j]]) / 2
            apart[low, values[j]] = apart[values[j], low] = between**2
    return apart


def _pairs(votes: Counter[float], apart: dict[tuple[float, float], float]) -> float:
    """The distances of all ordered pairs of unequal votes."""
    return sum(n * m * apart[a, b] for a, n in votes.items() for b, m in votes.items() if a != b)
