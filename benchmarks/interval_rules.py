"""Why the report's intervals are built as they are: other rules on the same simulated studies.

    python benchmarks/interval_rules.py      # a minute on one core

First, several seeds: a crossed layout of normal values, whose mean squares are drawn from their χ² distributions. Each
rule's lowest and highest coverage over sizes, shares of the residual and ratios of seeds' to examples' variance. Then
one seed: the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) beside the report's interval, in the
conditions of ``coverage.py``. Last line: JSON of the same, in percent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np
from coverage import ARMS, CONDITIONS, EFFECTS, draw
from scipy import stats

from colever.optimizers.statistics import seeds_effect
from colever.optimizers.variance import quantile

RATIOS = (0, 0.1, 0.3, 1, 2, 4, 8, 16, 32, 100, 1000)  # n σ²_seed / (σ²_example + σ²_residual)
RESAMPLES = 10_000


def crossed(seeds: int, examples: int, rest: float, ratio: float, studies: int, rng: np.random.Generator):
    """Errors of the mean and the estimates of A and B (``variance.py``); σ²_example + σ²_residual is 1."""
    of_seed, of_example = ratio / examples, 1 - rest

    def mean_square(expected: float, freedom: int) -> np.ndarray:
        return expected * rng.chisquare(freedom, studies) / freedom

    cells = seeds * examples
    seed = mean_square(examples * of_seed + rest, seeds - 1)
    example = mean_square(seeds * of_example + rest, examples - 1)
    residual = mean_square(rest, (seeds - 1) * (examples - 1))
    error = rng.normal(0, np.sqrt(of_seed / seeds + of_example / examples + rest / cells), studies)
    return error, seed / cells, np.maximum(example - residual, 0) / cells


def reaches(part_A: np.ndarray, part_B: np.ndarray, seeds: int, examples: int) -> dict[str, np.ndarray]:
    """Standard errors to either side, by rule."""
    share = part_A / (part_A + part_B)
    of_seeds, of_examples = stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, examples - 1)
    freedom = 1 / (share**2 / (seeds - 1) + (1 - share) ** 2 / (examples - 1))
    return {
        "Satterthwaite": stats.t.ppf(0.975, freedom),
        "Cochran": of_examples + (of_seeds - of_examples) * share,
        "report": quantile(part_A, part_B, seeds, examples),
    }


def over_seeds(seeds: int, studies: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Each rule's lowest and highest coverage in percent."""
    covered: dict[str, list[float]] = {}
    for examples in (32, 128, 512):
        for rest in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
            for ratio in RATIOS:
                error, part_A, part_B = crossed(seeds, examples, rest, ratio, studies, rng)
                for rule, reach in reaches(part_A, part_B, seeds, examples).items():
                    hit = np.abs(error) <= reach * np.sqrt(part_A + part_B)
                    covered.setdefault(rule, []).append(100 * float(hit.mean()))
    return {rule: (min(shares), max(shares)) for rule, shares in covered.items()}


def percentiles(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Of the means of resamples: the counts of each level are multinomial."""
    levels, counts = np.unique(differences, return_counts=True)
    means = rng.multinomial(differences.size, counts / differences.size, RESAMPLES) @ levels / differences.size
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def one_seed(examples: int, studies: int, rng: np.random.Generator) -> Iterator[tuple[str, str, float, float]]:
    """(condition, effect, the bootstrap's coverage, the report's) in percent, with θ's s.d. over seeds at 0.2."""
    for condition in CONDITIONS:
        golds, means = draw(condition, examples, 1, 0.2, studies, rng)
        for effect in ("order", "gain"):
            terms, hits = EFFECTS[effect], np.zeros(2)
            for study, run in zip(golds, means, strict=True):
                truth = sum(c * run[ARMS.index(arm), 0] for arm, c in terms.items())
                rows = [(c, study[ARMS.index(arm)]) for arm, c in terms.items()]
                low, high = percentiles(sum(c * row[0] for c, row in rows), rng)
                ours = seeds_effect([(c, list(row)) for c, row in rows])
                assert ours is not None
                hits += (low - 1e-12 <= truth <= high + 1e-12, ours.low <= truth <= ours.high)
            yield condition.name, effect, *(100 * hits / studies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40_000, help="of the normal layout, per setting")
    parser.add_argument("--bootstraps", type=int, default=1_000, help="studies with one seed, per condition and effect")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(args.studies, args.bootstraps) < 1:
        parser.error("accepted: --studies and --bootstraps at least 1")
    rng, found = np.random.default_rng(args.seed), {}
    for seeds in (2, 3, 4, 5, 10):
        found[seeds] = {
            rule: [round(x, 1) for x in pair] for rule, pair in over_seeds(seeds, args.studies, rng).items()
        }
        print(
            f"{seeds:2} seeds:",
            *(f"{rule} {low} to {high} ·" for rule, (low, high) in found[seeds].items()),
            flush=True,
        )
    print("one seed, 128 examples: percentile bootstrap, report")
    single = []
    for condition, effect, bootstrap, ours in one_seed(128, args.bootstraps, rng):
        single.append((bootstrap, ours))
        print(f"  {condition:14} {effect:6} {bootstrap:5.1f} {ours:5.1f}", flush=True)
    lowest = {
        rule: round(float(low), 1) for rule, low in zip(("bootstrap", "report"), np.min(single, axis=0), strict=True)
    }
    print(json.dumps({"over_seeds": found, "one_seed_lowest": lowest}))


if __name__ == "__main__":
    main()
