"""Means with 95 % intervals over examples. Knows lists of numbers; knows nothing of candidates or levers.

A mean of zeros and ones gets Wilson's interval (it does not collapse at 0 or 1), any other mean the percentile
bootstrap; an effect, linear in paired means, the paired percentile bootstrap (Efron and Tibshirani 1993, chapter 13).
All are conditional on the training run that made the candidates: they hold examples' variation, not seeds'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from colever.types import Estimate

RESAMPLES = 10_000
LEVEL = 0.95
Z = 1.959963984540054
_CHUNK = 500  # resamples at a time: 500 × 512 examples are 2 MB
Values = Sequence[float | None]


def mean_estimate(values: Values, *, seed: int = 0) -> Estimate | None:
    """The mean of the known values with its interval; None if none is known."""
    known = np.array([v for v in values if v is not None], dtype=float)
    if known.size == 0:
        return None
    if np.isin(known, (0.0, 1.0)).all():
        return wilson(int(known.sum()), known.size)
    low, high = _percentiles(known, seed)
    return Estimate(float(known.mean()), low, high)


def wilson(successes: int, total: int) -> Estimate:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    p = successes / total
    centre = (p + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z * math.sqrt(p * (1 - p) / total + Z * Z / (4 * total * total)) / (1 + Z * Z / total)
    return Estimate(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))


def paired_effect(terms: Sequence[tuple[float, Values]], *, seed: int = 0) -> Estimate | None:
    """``Σ coefficient · mean(values)`` over the examples that every term knows, resampled together.

    ``resolved`` is whether the interval excludes 0. Where all differences are equal and not 0, resampling says
    nothing; then at most 3/n of the population differ (the rule of three, at 95 %), by as much as the coefficients
    allow. None if there is no such example.
    """
    rows = np.array([[np.nan if v is None else v for v in values] for _, values in terms], dtype=float)
    rows = rows[:, ~np.isnan(rows).any(axis=0)]
    if rows.shape[1] == 0:
        return None
    differences = np.array([c for c, _ in terms]) @ rows
    low, high = _percentiles(differences, seed)
    if differences[0] != 0 and np.allclose(differences, differences[0], rtol=0, atol=1e-12):
        few, value = min(1.0, 3 / differences.size), float(differences[0])
        least, most = (sum(min(c * sign, 0) for c, _ in terms) * sign for sign in (1, -1))
        low, high = value + few * (least - value), value + few * (most - value)
    return Estimate(float(differences.mean()), low, high, resolved=low > 0 or high < 0)


def lever_effects(arms: Mapping[str, Values], *, seed: int = 0) -> dict[str, Estimate]:
    """Shapley shares and the interaction of two levers from the values of base, prompt, weights and both.

    With v the mean: share of prompt = ½ [v(p) − v(∅) + v(pw) − v(w)], likewise weights; their sum is v(pw) − v(∅);
    interaction = v(pw) − v(p) − v(w) + v(∅). (Shapley 1953, for two players.)
    """
    base, prompt, weights, both = (arms[name] for name in ("base", "prompt", "weights", "both"))
    terms: dict[str, list[tuple[float, Values]]] = {
        "prompt": [(0.5, prompt), (-0.5, base), (0.5, both), (-0.5, weights)],
        "weights": [(0.5, weights), (-0.5, base), (0.5, both), (-0.5, prompt)],
        "interaction": [(1, both), (-1, prompt), (-1, weights), (1, base)],
    }
    estimates = {name: paired_effect(of, seed=seed) for name, of in terms.items()}
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}


def _percentiles(values: np.ndarray[Any, Any], seed: int) -> tuple[float, float]:
    rng = np.random.Generator(np.random.Philox(seed))
    means = np.concatenate(
        [
            values[rng.integers(0, values.size, (_CHUNK, values.size), dtype=np.int32)].mean(axis=1)
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return _clean(low), _clean(high)


def _clean(value: float) -> float:
    """Rounding noise around 0 is 0: it must not decide whether an interval holds 0."""
    return 0.0 if abs(value) < 1e-12 else float(value)
