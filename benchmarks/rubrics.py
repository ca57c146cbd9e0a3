"""What the design of a rubric does to what the weight lever learns: the same pull under other rubrics, gold on test.

For each bundled task one pull of the weight lever from the same base at one seed, under

- ``own``: the task's rubric, with partial credit;
- ``binary``: gold alone, right or wrong;
- ``gated``: the task's rubric, 0 unless its criterion of form holds;
- ``form``: half of the weight on that criterion;
- ``noisy``: the task's rubric, whose criterion of truth is told wrongly for every fifth answer, as a poor judge would.

    python benchmarks/rubrics.py                          # about 45 minutes on one core
    python benchmarks/rubrics.py --tasks arithmetic --designs own binary

Gold is greedy on test, with the paired 95 % interval of its difference from ``own``. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dspy

from colever import Rubric, Task, console
from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import NullProgress
from colever.optimizers.statistics import paired_effect
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.load import BUNDLED, load_task
from colever.types import Evaluation, Step

FORM = {"arithmetic": "in_range", "lookup": "a_name", "routing": "valid"}  # a task's criterion of form
TRUTH = {"arithmetic": "answer", "lookup": "answer", "routing": "team"}
WRONG = 5  # one answer in so many is told wrongly


@dataclass(frozen=True)
class Noisy:
    """A criterion of 0 or 1 that is told wrongly for every ``WRONG``-th answer, the same ones always."""

    check: Callable[..., float | bool]

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
        value = float(self.check(example, prediction, steps))
        said = repr((sorted(example.toDict().items()), sorted(prediction.toDict().items())))
        return 1 - value if hashlib.sha256(said.encode()).digest()[0] % WRONG == 0 else value


def designs(task: Task) -> Mapping[str, Rubric]:
    """The rubrics by name."""
    own, form, truth = task.rubric.criteria, FORM[task.name], TRUTH[task.name]
    others = sum(c.weight for c in own if c.name != form)
    return {
        "own": task.rubric,
        "binary": Rubric([replace(c, weight=float(c.name == truth)) for c in own]),
        "gated": Rubric([replace(c, gate=1.0) if c.name == form else c for c in own]),
        "form": Rubric([replace(c, weight=others) if c.name == form else c for c in own]),
        "noisy": Rubric([replace(c, check=Noisy(c.check)) if c.name == truth else c for c in own]),
    }


def pull(task: Task, engine: TransformersEngine, seed: int) -> Evaluation:
    """Of the child of one pull of the weight lever, on test."""
    seen = replace(task, gold=None, dev=(), test=(), watched={})
    with tempfile.TemporaryDirectory() as folder:
        made = WeightLever(WeightSettings()).improve(
            task.base_candidate(), seen, engine, Budget(), seed, Path(folder), NullProgress()
        )
        return evaluate(made.candidate, task, engine, "test", seed=seed)


def main() -> None:
    options = _options()
    console.silence()
    engine, found = open_engine("seed"), dict[str, dict[str, object]]()
    for name in options.tasks:
        task = load_task(name)
        base, first = evaluate(task.base_candidate(), task, engine, "test", seed=options.seed), None
        print(f"{name}, base: gold {base.gold:.3f}")
        for design, rubric in designs(task).items():
            if design not in options.designs:
                continue
            after = pull(replace(task, rubric=rubric), engine, options.seed)
            first = first or after
            effect = paired_effect([(1, after.golds), (-1, first.golds)])
            assert effect is not None
            print(
                f"{name}, {design}: gold {after.gold:.3f}, {100 * effect.value:+.1f} "
                f"[{100 * effect.low:.1f}, {100 * effect.high:.1f}] points from the first design",
                flush=True,
            )
            row = {"gold": after.gold, "low": effect.low, "high": effect.high, "failed": after.policy_failures}
            found.setdefault(name, {"base": base.gold})[design] = row
    print(json.dumps(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(BUNDLED), default=list(BUNDLED))
    parser.add_argument("--designs", nargs="+", default=["own", "binary", "gated", "form", "noisy"])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
