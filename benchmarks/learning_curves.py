"""What each choice of the weight lever's settings does on a bundled task: the curves of docs/seed-model.md.

One pull per choice from the same base with the same seed: mean reward at temperature 1 along the updates, then the
greedy score and gold on dev. ``--figure`` draws the curves. The last line is one JSON object.

    python benchmarks/learning_curves.py [--task arithmetic] [--updates 40] [--choice 'lr 3e-5'] [--figure FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import NullProgress
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.task import Task

CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 3e-5": {"learning_rate": 3e-5},
    "lr 3e-4": {"learning_rate": 3e-4},
    "LoRA 16, lr 1e-3": {"peft": "lora", "learning_rate": 1e-3},
    "LoRA 16, lr 3e-3": {"peft": "lora", "learning_rate": 3e-3},
    "KL 0.05": {"beta": 0.05},
    "32 examples × G 4": {"examples_per_update": 32, "group_size": 4},
    "8 examples × G 8": {"examples_per_update": 8},
    "no scaling": {"scale_rewards": "none"},
    "by trajectory": {"grouping": "trajectory"},
    "best rollouts": {"way": "rejection"},
    "curriculum": {"curriculum": True},
}
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the updates
SMOOTH = 3  # updates on either side


def train(task: Task, engine: TransformersEngine, settings: WeightSettings, seed: int) -> dict[str, Any]:
    """One pull from the task's base: its reward curve, the child on dev, and seconds. A failed pull says why."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lever, base = WeightLever(settings), task.base_candidate()
        try:
            pull = lever.improve(base, task, engine, Budget(), seed, Path(folder), NullProgress())
        except Exception as error:  # noqa: BLE001 - a choice that fails is a result
            return {"failed": f"{type(error).__name__}: {error}"}
        seconds = time.monotonic() - started
        dev = evaluate(pull.candidate, task, engine)
    reward = [value for _, value in pull.metrics["reward"]]
    return {"reward": reward, "score": dev.score, "gold": dev.gold, "seconds": seconds}


def smoothed(curve: list[float], place: float) -> float:
    at = round(place * (len(curve) - 1))
    near = curve[max(0, at - SMOOTH) : at + SMOOTH + 1]
    return sum(near) / len(near)


def draw(found: dict[str, dict[str, Any]], file: Path, title: str) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    for name, result in found.items():
        if curve := result.get("reward"):
            ys = [smoothed(curve, i / max(1, len(curve) - 1)) for i in range(len(curve))]
            axes.plot(ys, label=name, linewidth=2.5 if name == "default" else 1.2)
    axes.set(xlabel="update", ylabel="mean reward at temperature 1", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(BUNDLED), default="arithmetic")
    parser.add_argument("--updates", type=int, default=WeightSettings().updates)
    parser.add_argument("--choice", choices=list(CHOICES), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    task, engine, found = load_task(args.task), open_engine("seed"), {}
    for name in args.choice or CHOICES:
        found[name] = train(task, engine, WeightSettings(updates=args.updates, **CHOICES[name]), args.seed)
        result = found[name]
        if "failed" in result:
            print(f"{name:20} {result['failed']}", flush=True)
            continue
        curve = "  ".join(f"{100 * smoothed(result['reward'], p):5.1f}" for p in SHOWN)
        dev = f"dev {100 * result['score']:5.1f}, gold {100 * (result['gold'] or 0):5.1f}"
        print(f"{name:20} reward {curve}   {dev}   {result['seconds']:.0f} s", flush=True)
    if args.figure:
        draw(found, args.figure, f"{args.task}: the weight lever's settings")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
