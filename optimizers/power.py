"""How many more examples or seeds would resolve an effect. Knows an estimate with its spread; plans nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from colever.optimizers.variance import quantile
from colever.reported import Estimate, Spread

POWER = 0.8
MOST = 10**9  # examples; and of seeds:
MOST_SEEDS = 10**4
_CHI_POINTS = (np.arange(400) + 0.5) / 400


@dataclass(frozen=True)
class Needed:
    """How many *more* resolve the effect, the other number staying as it is; None: no number of them alone does."""

    examples: int | None
    seeds: int | None


def needed(effect: Estimate, *, power: float = POWER) -> Needed:
    """The fewest further examples, or training seeds, that resolve an effect of the estimated size with ``power``.

    K seeds and n examples resolve a true effect δ with probability P(δ + √V z > q(Â, B) · √(Â + B)), V = A + B,
    z normal, A = σ²_seed/K + σ²_residual/(Kn), B = σ²_example/n, Â = A χ²(K−1)/(K−1), q the interval's own quantile
    (``variance.quantile``). From one seed that is the usual δ = (t + z) σ/√n. Size and components are taken as they
    were estimated, so this is a plan, not a promise. More examples leave σ²_seed/K, more seeds leave σ²_example/n:
    what remains may forbid the effect at any number. From one seed nothing is known of seeds: ``seeds`` is None, and
    ``examples`` resolve the effect of that one training run.

    0 for a resolved effect. Raises ValueError for an estimate without the spread that effects have.
    """
    spread = effect.spread
    if spread is None or (spread.over_examples is None and spread.examples > 1):
        raise ValueError("effect: it has no spread; accepted: an effect from optimizers.statistics")
    if effect.resolved:
        return Needed(0, 0)
    if spread.over_examples is None:
        return Needed(None, None)
    size, seeds, examples = abs(effect.value), spread.seeds, spread.examples

    def by_examples(count: int) -> bool:
        return resolving_power(size, spread, seeds, count) >= power

    def by_seeds(count: int) -> bool:
        return resolving_power(size, spread, count, examples) >= power

    more = _fewest(by_examples, examples, MOST)
    many = None if seeds == 1 else _fewest(by_seeds, seeds, MOST_SEEDS)
    return Needed(
        examples=None if more is None else more - examples,
        seeds=None if many is None else many - seeds,
    )


def would_resolve(effect: Estimate) -> str:
    """``needed`` in words, with the size that it is planned for."""
    more = needed(effect)
    counts = {"test examples": more.examples, "training seeds": more.seeds}
    ways = [f"{count:,} more {what}" for what, count in counts.items() if count]
    nothing = "no number of " + ("test examples" if effect.over == "examples" else "examples or of seeds alone")
    return f"to resolve {100 * effect.value:+.1f} points: {' or '.join(ways) or nothing}"


def resolving_power(size: float, spread: Spread, seeds: int, examples: int) -> float:
    """The probability that ``seeds`` and ``examples`` resolve a true effect of ``size`` > 0; see ``needed``."""
    of_example = (spread.over_examples or 0.0) ** 2 / examples
    if seeds == 1:
        reach = float(quantile(0.0, of_example, 1, examples))
        return float(stats.norm.sf(reach - size / max(of_example**0.5, 1e-300)))
    of_seed = ((spread.over_seeds or 0.0) ** 2 + (spread.residual or 0.0) ** 2 / examples) / seeds
    estimates = of_seed * stats.chi2.ppf(_CHI_POINTS, seeds - 1) / (seeds - 1)
    reach = quantile(estimates, np.full_like(estimates, of_example), seeds, examples) * np.sqrt(estimates + of_example)
    return float(stats.norm.sf((reach - size) / max((of_seed + of_example) ** 0.5, 1e-300)).mean())


def _fewest(enough: Callable[[int], bool], start: int, most: int) -> int | None:
    """The smallest count above ``start`` that is enough, by doubling and halving; None if ``most`` is not."""
    low, high = start, start + 1
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
