"""Do the report's 95 % intervals hold what they claim?  Thousands of simulated studies with planted effects.

    python benchmarks/coverage.py            # five to ten minutes on one core
    python benchmarks/coverage.py --studies 500 --training-seeds 2 5

Gold of an arm on an example is 1 where ``θ + difficulty + own + noise > 0``: the difficulty is shared by all arms (so
pairing matters), ``own`` belongs to arm and example in every training seed (σ 0.7), the noise to arm, example and
seed (σ 1). Trained arms draw θ anew for each training seed; base and prompt do not train and answer alike in all. The
means are planted: those over all seeds exactly, and those of the seeds that were drawn are known.

From one seed an interval claims the effect of that training run, over the population of examples; from several, the
effect over seeds and examples. ``unconditional`` shows how a one-seed interval misses what it does not claim.
``false resolved`` counts effects that are truly 0 and called resolved. Last line: JSON, the extremes over conditions
and effects; ``stress`` holds those of the conditions in which about 2 to 7 in 100 answers differ between arms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from colever.optimizers.statistics import LEVERS, lever_effects_over_seeds, mean_over_seeds, seeds_effect
from colever.reported import Estimate

ARMS = ("base", "prompt", "weights", "both", "other")  # both: p,w; other: w,p
TRAINED = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
EFFECTS = {name: {arm: c for c, arm in terms} for name, terms in LEVERS.items()} | {
    "order": {"both": 1, "other": -1},
    "gain": {"both": 1, "base": -1},
    "mean": {"both": 1},
}
OWN = 0.7
BATCH = 500  # studies drawn at a time


@dataclass(frozen=True)
class Condition:
    name: str
    means: tuple[float, ...]  # gold of ARMS over seeds and examples
    difficulty: float = 2.0  # its standard deviation: the larger, the more arms agree
    stress: bool = False


CONDITIONS = (
    Condition("no effects", (0.5, 0.5, 0.5, 0.5, 0.5)),
    Condition("small effects", (0.50, 0.53, 0.55, 0.60, 0.58)),
    Condition("large effects", (0.20, 0.40, 0.70, 0.92, 0.85)),
    Condition("weights alone", (0.45, 0.45, 0.70, 0.70, 0.70)),
    Condition("near 100 %", (0.93, 0.95, 0.96, 0.97, 0.97), stress=True),
    Condition("few differ", (0.90, 0.91, 0.93, 0.95, 0.95), difficulty=6.0, stress=True),
)


@dataclass(frozen=True)
class Cell:
    """One condition at one size: per effect the shares of studies that covered, and that resolved a true 0."""

    condition: Condition
    examples: int
    seeds: int
    seed_sd: float  # of θ over seeds, in standard deviations of the answers' latent; 0.05 is 2 points at a mean of 50 %
    coverage: dict[str, float]  # of what the interval claims
    unconditional: dict[str, float]  # of the effect over all seeds
    false: dict[str, float]  # resolved, where what the interval claims is 0
    unconditional_false: dict[str, float]  # resolved, where the effect over all seeds is 0


def draw(
    condition: Condition, examples: int, seeds: int, seed_sd: float, studies: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Golds (studies × arms × seeds × examples) and each run's true mean (studies × arms × seeds)."""
    latent = np.sqrt(condition.difficulty**2 + OWN**2 + 1)
    of_seeds = seed_sd * latent * TRAINED
    centre = ndtri(np.array(condition.means)) * np.sqrt(latent**2 + of_seeds**2)
    theta = centre[:, None] + of_seeds[:, None] * rng.standard_normal((studies, len(ARMS), seeds))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((studies, *shape), dtype=np.float32)

    noise = normal(len(ARMS), seeds, examples)
    noise[:, TRAINED == 0] = noise[:, TRAINED == 0, :1]
    lean = condition.difficulty * normal(1, 1, examples) + OWN * normal(len(ARMS), 1, examples)
    return (theta[..., None] + lean + noise > 0).astype(float), ndtr(theta / latent)


def measure(condition: Condition, examples: int, seeds: int, seed_sd: float, studies: int, seed: int) -> Cell:
    rng = np.random.default_rng((seed, CONDITIONS.index(condition), examples, seeds, round(1000 * seed_sd)))
    counts = np.zeros((4, len(EFFECTS)))
    over_seeds = [_value(terms, condition.means) for terms in EFFECTS.values()]
    for start in range(0, studies, BATCH):
        golds, runs = draw(condition, examples, seeds, seed_sd, min(BATCH, studies - start), rng)
        for study, means in zip(golds, runs, strict=True):
            arms = {name: list(study[a]) for a, name in enumerate(ARMS)}
            found = lever_effects_over_seeds(arms)
            found["order"] = _known(seeds_effect([(1, arms["both"]), (-1, arms["other"])]))
            found["gain"] = _known(seeds_effect([(1, arms["both"]), (-1, arms["base"])]))
            found["mean"] = _known(mean_over_seeds(arms["both"]))
            for e, (name, terms) in enumerate(EFFECTS.items()):
                estimate, truth = found[name], over_seeds[e]
                claimed = _value(terms, means[:, 0]) if seeds == 1 else truth
                resolved = estimate.resolved and name != "mean"
                counts[:, e] += (
                    estimate.low <= claimed + 1e-12 and claimed - 1e-12 <= estimate.high,
                    estimate.low <= truth + 1e-12 and truth - 1e-12 <= estimate.high,
                    resolved and abs(claimed) < 1e-12,
                    resolved and abs(truth) < 1e-12,
                )
    shares = [dict(zip(EFFECTS, row / studies, strict=True)) for row in counts]
    nulls = {name for name, value in zip(EFFECTS, over_seeds, strict=True) if abs(value) < 1e-12 and name != "mean"}
    certain = nulls if seeds > 1 or seed_sd == 0 else set()
    false = {name: shares[2][name] for name in EFFECTS if name in certain}
    return Cell(condition, examples, seeds, seed_sd, shares[0], shares[1], false,
                {name: shares[3][name] for name in EFFECTS if name in nulls})  # fmt: skip


def cells(sizes: Sequence[int], numbers: Sequence[int], studies: int, seed: int) -> Iterator[Cell]:
    for seeds in numbers:
        for condition in CONDITIONS:
            for examples in sizes:
                for seed_sd in (0.0, 0.05, 0.2):
                    yield measure(condition, examples, seeds, seed_sd, studies, seed)


def extremes(found: Sequence[Cell], names: Sequence[str]) -> dict[str, float | None]:
    return _range([cell.coverage[name] for cell in found for name in names])


def summary(found: Sequence[Cell]) -> dict[str, object]:
    """Percentages; ``false_resolved`` is the highest of any null effect in any condition, stress included."""
    usual, stress = ([c for c in found if c.condition.stress is wanted] for wanted in (False, True))
    one = [c for c in usual if c.seeds == 1 and c.seed_sd > 0]
    effects = [name for name in EFFECTS if name != "mean"]
    return {
        "coverage": extremes(usual, effects),
        "false_resolved": _range([value for c in found for value in c.false.values()])["highest"],
        "stress": extremes(stress, effects),
        "of_means": extremes(found, ["mean"]),
        "one_seed_over_all_seeds": {
            "coverage": _range([c.unconditional[name] for c in one for name in effects]),
            "false_resolved": _range([value for c in one for value in c.unconditional_false.values()])["highest"],
        },
    }


def row(cell: Cell) -> str:
    def part(values: dict[str, float]) -> str:
        return " ".join(f"{100 * values[name]:6.1f}" if name in values else "     –" for name in EFFECTS)

    head = f"{cell.seeds:5d}  {cell.condition.name:14} {cell.examples:8d} {cell.seed_sd:8.2f}"
    lines = [f"{head}  covered        {part(cell.coverage)}"]
    if cell.seeds == 1 and cell.seed_sd > 0:
        lines.append(f"{'':{len(head)}}  unconditional  {part(cell.unconditional)}")
    for label, values in (("false resolved", cell.false), ("  unconditional", cell.unconditional_false)):
        if values and (label == "false resolved" or (cell.seeds == 1 and cell.seed_sd > 0)):
            lines.append(f"{'':{len(head)}}  {label:14} {part(values)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5000, help="simulated per condition")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--examples", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--training-seeds", type=int, nargs="+", default=[1, 3])
    args = parser.parse_args()
    if min(args.studies, *args.training_seeds) < 1 or min(args.examples) < 2:
        parser.error("accepted: --studies and --training-seeds at least 1, --examples at least 2")
    start, found = time.monotonic(), []
    print(f"seeds  condition      examples  seed sd  %              {' '.join(f'{name[:6]:>6}' for name in EFFECTS)}")
    for cell in cells(args.examples, args.training_seeds, args.studies, args.seed):
        found.append(cell)
        print(row(cell), flush=True)
    noise = 100 * np.sqrt(0.95 * 0.05 / args.studies)
    print(f"{args.studies} studies each (±{noise:.1f} is one standard error), {time.monotonic() - start:.0f} s")
    print(json.dumps(summary(found)))


def _value(terms: dict[str, float], means: Sequence[float] | np.ndarray) -> float:
    return float(sum(c * means[ARMS.index(arm)] for arm, c in terms.items()))


def _known(value: Estimate | None) -> Estimate:
    assert value is not None
    return value


def _range(shares: Sequence[float]) -> dict[str, float | None]:
    """In percent; None where there are none."""
    if not shares:
        return {"lowest": None, "highest": None}
    return {"lowest": round(100 * min(shares), 2), "highest": round(100 * max(shares), 2)}


if __name__ == "__main__":
    main()
