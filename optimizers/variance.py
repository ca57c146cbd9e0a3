"""Variance of a mean over a crossed layout: training seeds × examples, one value per cell. Knows arrays only.

Model: ``d[s, i] = μ + seed_s + example_i + residual_si``, all random and uncorrelated. The grand mean then varies by

    Var = σ²_seed / K + σ²_example / n + σ²_residual / (K n) = A + B,
    A = E[MS_seed] / (K n),    B = E[MS_example − MS_residual] / (K n)

(Searle, Casella and McCulloch 1992, *Variance Components*, chapter 4: expected mean squares of the two-way layout;
Owen 2007, arXiv:0712.1111: they hold whatever the distributions). A is estimated with K − 1 degrees of freedom, B with
about n − 1, so an interval for the mean is a Behrens–Fisher problem. ``quantile`` says how it is solved here, and
``docs/statistics.md`` what that covers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from colever.reported import Spread

LEVEL = 0.95
BEND, BEND_OF_TWO = 1.35, 1.0
Array = NDArray[np.float64]


def mean_squares(values_KN: Array) -> tuple[float, float, float]:
    """Of seeds, examples and residual of the two-way layout without replication; K ≥ 2 and n ≥ 2."""
    seeds, examples = values_KN.shape
    of_seed, of_example, grand = values_KN.mean(axis=1), values_KN.mean(axis=0), values_KN.mean()
    residual = values_KN - of_seed[:, None] - of_example + grand
    return (
        float(examples * np.square(of_seed - grand).sum() / (seeds - 1)),
        float(seeds * np.square(of_example - grand).sum() / (examples - 1)),
        float(np.square(residual).sum() / ((seeds - 1) * (examples - 1))),
    )


def variance_parts(values_KN: Array) -> tuple[float, float]:
    """Estimates of (A, B) of the module's docstring, B not below 0; with one seed (0, s²/n).

    One example says nothing of how examples vary: B is then infinite.
    """
    seeds, examples = values_KN.shape
    if examples < 2:
        return 0.0, float("inf")
    if seeds == 1:
        return 0.0, float(values_KN.var(ddof=1) / examples)
    seed, example, residual = mean_squares(values_KN)
    cells = seeds * examples
    return seed / cells, max(0.0, example - residual) / cells


def spread(values_KN: Array) -> Spread:
    """Standard deviations over examples, over seeds and of the rest; a component estimated below 0 is 0.

    With one seed there is one standard deviation, over examples, which holds the rest as well.
    """
    seeds, examples = values_KN.shape
    if examples < 2:
        return Spread(seeds, examples)
    if seeds == 1:
        return Spread(seeds, examples, over_examples=float(values_KN.std(ddof=1)))
    seed, example, residual = mean_squares(values_KN)
    return Spread(
        seeds,
        examples,
        over_examples=_root((example - residual) / seeds),
        over_seeds=_root((seed - residual) / examples),
        residual=_root(residual),
    )


def quantile(part_A: Any, part_B: Any, seeds: int, examples: int, level: float = LEVEL) -> Any:
    """How many standard errors √(A + B) the interval reaches to either side. A and B may be arrays.

    With w = A / (A + B) it is ``t_n + (t_K − t_n) · w^b``, t_K and t_n being Student's quantiles with K − 1 and n − 1
    degrees of freedom. b = 1 is the rule of Cochran (1964, Biometrics 20:191) for the Behrens–Fisher problem; it is
    kept for two seeds and covers too much for more, where b = 1.35 was chosen by simulation. Satterthwaite's (1946)
    degrees of freedom are not used: where few seeds happen to be alike they are far too many (87 % coverage with two,
    92 % with three).
    """
    tail = (1 + level) / 2
    of_examples = _student(tail, max(examples - 1, 1))
    if seeds == 1:
        return of_examples
    total = part_A + part_B
    share = np.divide(part_A, total, out=np.zeros_like(total, dtype=float), where=np.asarray(total) > 0)
    return of_examples + (_student(tail, seeds - 1) - of_examples) * share ** (BEND_OF_TWO if seeds == 2 else BEND)


@cache
def _student(probability: float, freedom: int) -> float:
    return float(stats.t.ppf(probability, freedom))


def _root(variance: float) -> float:
    return float(np.sqrt(max(0.0, variance)))
