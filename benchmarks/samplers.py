"""Which sampler and pruner find a good schedule with its settings in few trials?  Made-up surfaces, real Optuna.

The space is a sweep's own: the arms first, then schedules of up to three rounds with learning rate, updates and demos.
A surface gives the true score after every round; a study sees it with the noise of a dev split. On ``order`` prompt
before weights pays, on ``reverse`` weights before prompt, on ``settings`` the learning rate decides nearly all, on
``flat`` hardly anything does. Where their optimum lies is drawn anew for each repeat, the same for all samplers.

Reported is regret: the surface's best true score less that of the trial that looks best, after so many trials, and the
share of rounds that a pruner saved. Pruners are tried with TPE. (Wilcoxon's would need an example's
score as a step; three means a trial are too few for its test to end one.)

    python benchmarks/samplers.py                       # about 8 minutes on one core, most of it the Gaussian process
    python benchmarks/samplers.py --samplers tpe random --repeats 50

The last line is JSON: mean regret in points at the last count of trials, by sampler and by pruner, over all surfaces.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna

from colever import console
from colever.config import SweepConfig
from colever.loading import load_config
from colever.optimizers import space
from colever.optimizers.alternate import derive_seed
from colever.optimizers.sweep import sampler_of

NOISE = 0.02  # of a mean over some 400 examples
COUNTS = (10, 20, 30)
SURFACES = ("order", "reverse", "settings", "flat")
PRUNERS: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=3),
}
Surface = Callable[[str, Mapping[str, Any]], float]


def main() -> None:
    options = _options()
    console.silence()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = load_config(flags={"task": "routing"})
    line: dict[str, dict[str, float]] = {"sampler": {}, "pruner": {}}
    ways = [("sampler", name, name, "none") for name in options.samplers]
    ways += [("pruner", name, "tpe", name) for name in PRUNERS]
    with console.progress() as drawn:
        done, total = 0, len(ways) * len(SURFACES) * options.repeats
        print(f"{'':22}{'surface':10}" + "".join(f"{f'{n} trials':>14}" for n in COUNTS) + f"{'rounds saved':>14}")
        for what, name, sampler, pruner in ways:
            last = []
            for surface in SURFACES:
                found, saved = [], []
                for repeat in range(options.repeats):
                    regrets, share = _study(config, surface, sampler, pruner, repeat)
                    found.append(regrets)
                    saved.append(share)
                    done += 1
                    drawn.update(done, total, f"{what} {name} on {surface}")
                means, errors = np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(options.repeats)
                cells = "".join(f"{100 * m:8.2f} ±{100 * e:4.2f}" for m, e in zip(means, errors, strict=True))
                print(f"{what + ' ' + name:22}{surface:10}{cells}{100 * np.mean(saved):12.0f} %", flush=True)
                last.append(means[-1])
            line[what][name] = round(100 * float(np.mean(last)), 2)
    print(json.dumps(line))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", choices=("tpe", "gp", "random"), default=["tpe", "gp", "random"])
    parser.add_argument("--repeats", type=int, default=20, help="studies of each kind (at least 2)")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats: accepted: 2 or more")
    return options


def _study(config: SweepConfig, kind: str, sampler: str, pruner: str, repeat: int) -> tuple[list[float], float]:
    """Regret after each of COUNTS trials, and the share of rounds that were not run."""
    surface = _surface(config, kind, np.random.default_rng([repeat, SURFACES.index(kind)]))
    noise = np.random.default_rng([repeat, 99])
    study = optuna.create_study(direction="maximize", pruner=PRUNERS[pruner]())
    for schedule in config.schedules:
        if schedule != "adaptive":
            study.enqueue_trial(space.arm_params(config, schedule))
    truth, seen, planned, run = [], [], 0, 0
    for number in range(max(COUNTS)):
        study.sampler = sampler_of(sampler, derive_seed(repeat, number))
        trial = study.ask()
        schedule, settings = space.suggest(trial, config)
        if schedule == "adaptive":  # has no surface: as the longest order that it is likely to take
            schedule = "p,w,w"
        letters, value, pruned = schedule.split(","), 0.0, False
        arm = "fixed_params" in study.get_trials(deepcopy=False)[number].system_attrs
        planned += len(letters)
        for end in range(1, len(letters) + 1):
            run += 1
            value = surface(",".join(letters[:end]), settings)
            observed = value + NOISE * float(noise.standard_normal())
            trial.report(observed, step=end - 1)
            if not arm and end < len(letters) and trial.should_prune():
                pruned = True
                break
        study.tell(trial, None if pruned else observed, state=optuna.trial.TrialState.PRUNED if pruned else None)
        truth.append(value)
        seen.append(-math.inf if pruned else observed)
    best = _best(config, surface)
    regrets = [best - truth[int(np.argmax(seen[:count]))] for count in COUNTS]
    return regrets, 1 - run / planned


def _surface(config: SweepConfig, kind: str, rng: np.random.Generator) -> Surface:
    """The true score after a schedule's rounds: gains of prompt and weights, less with each repetition."""
    ranges = {r.name: r for r in space.ranges(config)}
    rate, demos = ranges["weights.learning_rate"], ranges["prompt.demos"]
    best_rate = math.exp(rng.uniform(math.log(rate.low), math.log(rate.high)))
    best_demos = rng.uniform(demos.low, demos.high)
    width = 0.5 if kind == "settings" else 1.5  # of the peak over the log of the learning rate
    size = 0.1 if kind == "flat" else 1.0
    after = {"order": 0.5, "reverse": -0.5}.get(kind, 0.0)  # what a prompt round before adds to the weights' gain

    def surface(prefix: str, settings: Mapping[str, Any]) -> float:
        peak = math.exp(-((math.log(settings["weights.learning_rate"] / best_rate) / width) ** 2))
        grown = 0.5 + 0.5 * settings["weights.updates"] / ranges["weights.updates"].high
        shown = 1 - 0.5 * ((settings["prompt.demos"] - best_demos) / (demos.high - demos.low)) ** 2
        gains, counts, score = {"p": 0.15 * shown, "w": 0.25 * peak * grown}, {"p": 0, "w": 0}, 0.4
        for letter in prefix.split(","):
            factor = 1 + after * (letter == "w" and counts["p"] > 0) - after * (letter == "p" and counts["w"] > 0)
            score += size * gains[letter] * factor * 0.3 ** counts[letter]
            counts[letter] += 1
        return min(score, 1.0)

    return surface


def _best(config: SweepConfig, surface: Surface) -> float:
    """The surface's highest value on a fine grid."""
    ranges = space.ranges(config)
    grids = [np.geomspace(r.low, r.high, 41) if not r.whole else np.linspace(r.low, r.high, 9) for r in ranges]
    points = [dict(zip([r.name for r in ranges], map(float, point), strict=True)) for point in _product(grids)]
    orders = [s for s in space.schedules(config) if s != "adaptive"]
    return max(surface(order, point) for order in orders for point in points)


def _product(grids: list[Any]) -> Any:
    return np.stack([g.ravel() for g in np.meshgrid(*grids, indexing="ij")], axis=1)


if __name__ == "__main__":
    main()
