"""Means and effects with 95 % intervals. Knows lists of numbers in [0, 1]; knows nothing of candidates or levers.

Values come per training seed, each a list over the same examples in the same order. From one seed an interval is over
examples alone, conditional on that training run; from several it is over seeds and examples (``variance.py``).
``docs/statistics.md`` has what each interval covers, by simulation. Nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from colever.optimizers.variance import Array, quantile, spread, variance_parts
from colever.reported import Estimate, Over

Z = 1.959963984540054
Values = Sequence[float | None]
Runs = Sequence[Values]  # by training seed
LEVERS: Mapping[str, Sequence[tuple[float, str]]] = {
    "prompt": [(0.5, "prompt"), (-0.5, "base"), (0.5, "both"), (-0.5, "weights")],
    "weights": [(0.5, "weights"), (-0.5, "base"), (0.5, "both"), (-0.5, "prompt")],
    "interaction": [(1, "both"), (-1, "prompt"), (-1, "weights"), (1, "base")],
}


def mean_estimate(values: Values) -> Estimate | None:
    """The mean of the known values of one run with Wilson's interval over examples; None if none is known."""
    return mean_over_seeds([values])


def mean_over_seeds(runs: Runs) -> Estimate | None:
    """The mean over seeds and examples; None if no example is known in every run.

    Wilson's score interval with the effective number of examples m(1 − m)/Var, which stays within [0, 1] and does
    not collapse at its ends (Korn and Graubard 1998, Survey Methodology 24:193, for the effective number; Dean and
    Pagano 2015, doi:10.1093/jssam/smv024, for Wilson's interval with it). Where nothing varies it is the number of
    examples. Raises ValueError for runs of unlike length and for values outside [0, 1].
    """
    table = _table([(1.0, runs)])
    seeds, examples = table.shape[1:]
    if examples == 0:
        return None
    values = table[0]
    if values.min() < -1e-9 or values.max() > 1 + 1e-9:
        raise ValueError(f"values: {values.min():g} to {values.max():g}; accepted: numbers from 0 to 1")
    mean = min(1.0, max(0.0, float(values.mean())))
    if seeds == 1:
        return _score_interval(mean, float(values.var() / examples), Z, examples)
    part_A, part_B = variance_parts(values)
    reach = float(quantile(part_A, part_B, seeds, examples))
    found = _score_interval(mean, part_A + part_B, reach, examples)
    return Estimate(mean, found.low, found.high, over=_over(seeds), spread=spread(values))


def wilson(successes: int, total: int) -> Estimate:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    return _wilson(successes / total, total, Z)


def paired_effect(terms: Sequence[tuple[float, Values]]) -> Estimate | None:
    """``seeds_effect`` of one training run: the interval is over examples, conditional on that run."""
    return seeds_effect([(c, [values]) for c, values in terms])


def seeds_effect(terms: Sequence[tuple[float, Runs]]) -> Estimate | None:
    """``Σ coefficient · mean(values)`` over seeds and the examples that every term knows in every seed.

    An arm without training (the base) is given as the same values for each seed. The interval is
    ``value ± quantile · √(A + B + c²/n²)`` (``variance.py``), within what the coefficients allow, c being the largest
    of them in size: examples count as varying by one more that differs in one arm. That is half of what Bonett and
    Price (2012, doi:10.3102/1076998611411915) add for two paired proportions, and leaves ±2 c/n where no two examples
    differ. ``resolved`` is whether it excludes 0.

    Terms that share their lists (``is``, not ``==``) are one arm: if they cancel, the effect is 0 for certain. None if
    no example is known everywhere. Raises ValueError for terms with unlike numbers of seeds or examples.
    """
    table = _table(terms)
    seeds, examples = table.shape[1:]
    if examples == 0:
        return None
    coefficients = np.array(_merged(terms))
    differences = np.tensordot(coefficients, table, axes=1)
    value = _clean(float(differences.mean()))
    largest = float(np.abs(coefficients).max())
    if largest == 0:
        return Estimate(0.0, 0.0, 0.0, False, _over(seeds), spread(np.zeros((seeds, examples))))
    part_A, part_B = variance_parts(differences)
    part_B += (largest / examples) ** 2
    half = float(quantile(part_A, part_B, seeds, examples)) * math.sqrt(part_A + part_B)
    least, most = float(np.minimum(coefficients, 0).sum()), float(np.maximum(coefficients, 0).sum())
    low, high = max(value - half, min(least, value)), min(value + half, max(most, value))
    return Estimate(value, low, high, low > 0 or high < 0, _over(seeds), spread(differences))


def shared_means(rows: Sequence[Values]) -> list[float]:
    """Each row's mean over the examples that all rows know; 0 where none is known in all."""
    table = _table([(1.0, [row]) for row in rows])[:, 0]
    return [float(row.mean()) if row.size else 0.0 for row in table]


def lever_effects(arms: Mapping[str, Values]) -> dict[str, Estimate]:
    """``lever_effects_over_seeds`` of one training run: intervals over examples, conditional on that run."""
    return lever_effects_over_seeds({name: [values] for name, values in arms.items()})


def lever_effects_over_seeds(arms: Mapping[str, Runs]) -> dict[str, Estimate]:
    """Shapley shares and the interaction of two levers from the runs of base, prompt, weights and both.

    With v the mean: share of prompt = ½ [v(p) − v(∅) + v(pw) − v(w)], likewise weights; their sum is v(pw) − v(∅);
    interaction = v(pw) − v(p) − v(w) + v(∅). (Shapley 1953, for two players.) Empty if no example is known everywhere.
    """
    found = {name: seeds_effect([(c, arms[arm]) for c, arm in terms]) for name, terms in LEVERS.items()}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _table(terms: Sequence[tuple[float, Runs]]) -> Array:
    """Terms × seeds × the examples that all of them know."""
    seeds, examples = {len(runs) for _, runs in terms}, {len(values) for _, runs in terms for values in runs}
    if len(seeds) != 1 or len(examples) != 1 or 0 in seeds:
        accepted = "accepted: at least one seed, the same seeds and the same examples in all"
        raise ValueError(f"runs: {sorted(seeds)} training seeds, {sorted(examples)} examples; {accepted}")
    table = np.array([list(runs) for _, runs in terms], dtype=float)  # None becomes NaN
    return table[:, :, ~np.isnan(table).any(axis=(0, 1))]


def _merged(terms: Sequence[tuple[float, Runs]]) -> list[float]:
    """Coefficients, those of one arm added up in its first term and 0 in its others."""
    merged: list[float] = []
    for i, (coefficient, runs) in enumerate(terms):
        merged.append(coefficient)
        for j, (_, earlier) in enumerate(terms[:i]):
            if all(one is other for one, other in zip(earlier, runs, strict=True)):
                merged[j] += coefficient
                merged[i] = 0.0
                break
    return merged


def _score_interval(mean: float, variance: float, reach: float, examples: int) -> Estimate:
    if math.isinf(variance):
        return Estimate(mean, 0.0, 1.0)
    return _wilson(mean, mean * (1 - mean) / variance if variance > 0 else examples, reach)


def _wilson(p: float, total: float, z: float) -> Estimate:
    if total == 0:  # a mean of exactly 0 or 1 whose variance is not 0 cannot be
        return Estimate(p, 0.0, 1.0)
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Estimate(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))


def _over(seeds: int) -> Over:
    return "examples" if seeds == 1 else "seeds and examples"


def _clean(value: float) -> float:
    """Rounding noise around 0 is 0."""
    return 0.0 if abs(value) < 1e-12 else value
