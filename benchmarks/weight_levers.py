"""Three ways to train the weights behind the same program, side by side: ours, DSPy's GRPO, TRL's stock trainer.

Same seed model, same bare program (no demos, no tuned wording), same number of rollouts (examples × G × updates), same
learning rate, schedule, loss, KL and temperature, and the rubric of the task as the reward:

- ``colever``: the weight lever at its defaults;
- ``dspy_grpo``: ``dspy.teleprompt.grpo.GRPO`` unchanged, on a ``colever.engine_lm`` through its provider; its updates
  are therefore made by our trainer too, on the groups that DSPy makes;
- ``trl``: TRL's ``GRPOTrainer`` unchanged, on the program's last predictor, the only one whose completions it can be
  told to score; prompts as the untrained program makes them, greedily. A rollout is a completion here.

Every result is scored like ``colever eval``: greedily on the whole test split, gold (exact) and the rubric's score.
Intervals are 95 % over training seeds and examples both (crossed bootstrap: ``weight_levers_results.difference``);
the base has examples alone. Seconds are those of training alone (prompts for TRL included, evaluation not), in this
process, at one number of threads for all; the mean over seeds.

    OMP_NUM_THREADS=1 python benchmarks/weight_levers.py                     # the whole comparison
    python benchmarks/weight_levers.py --tasks routing --seeds 0 --updates 3
    python benchmarks/weight_levers.py --learning-rate-of dspy_grpo=3e-4     # a peer's own learning rate

Finished results lie in ``--out`` by task, model and settings, so that an interrupted run goes on (take another folder
after a change of this code). A lever that raises is shown as failed with its error, and tried again by the next run.
The last line is JSON: {task: {lever: {score, low, high, seconds, cpu_seconds}}}, scores in percent; CPU seconds are
what the clock would show on a quiet machine with one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded; TRL would send telemetry

import torch
from weight_levers_results import Folder, Result, as_json, draw, leads, table
from weight_levers_training import LEVERS, without_gold

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.errors import LeverError, UsageError
from colever.optimizers.evaluate import run_candidate
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.task import Task
from colever.types import Weights, digest_of


def main() -> None:
    options = arguments()
    logging.disable(logging.CRITICAL)  # DSPy says much per group
    torch.set_num_threads(options.threads)
    folder, results = Folder(options.out), []
    cells = [(task, "base", 0) for task in options.tasks]
    cells += [(task, lever, seed) for seed in options.seeds for task in options.tasks for lever in options.levers]
    for done, (task, lever, seed) in enumerate(cells, 1):
        result = cell(load_task(task), lever, seed, settings_of(lever, options), folder)
        results.append(result)
        print(f"[{done}/{len(cells)}] {shown(result)}", flush=True)
    print("\n".join(["", *table(results, options.levers), ""]))
    if "colever" in options.levers:
        print("\n".join([*leads(results, "colever", [x for x in options.levers if x != "colever"]), ""]))
    if options.figure:
        draw(results, options.levers, options.figure)
    print(json.dumps(as_json(results, options.levers)))


def arguments() -> argparse.Namespace:
    default = WeightSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(BUNDLED), default=list(BUNDLED))
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=default.updates)
    parser.add_argument("--examples", type=int, default=default.examples_per_update, help="per update")
    parser.add_argument("--group-size", type=int, default=default.group_size, help="rollouts per example")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--learning-rate-of", action="append", default=[], metavar="LEVER=RATE")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--out", type=Path, default=Path("mlruns/weight_levers"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    try:
        options.rates = dict(map(rate_of, options.learning_rate_of))
    except UsageError as error:
        parser.error(str(error))
    return options


def rate_of(text: str) -> tuple[str, float]:
    """``"trl=3e-4"`` → ("trl", 3e-4). Raises UsageError."""
    lever, _, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if lever not in LEVERS or not value > 0:
        raise UsageError(f"--learning-rate-of {text!r}: accepted: LEVER=RATE, LEVER one of {', '.join(LEVERS)}")
    return lever, value


def settings_of(lever: str, options: argparse.Namespace) -> WeightSettings:
    return WeightSettings(
        updates=options.updates,
        examples_per_update=options.examples,
        group_size=options.group_size,
        learning_rate=options.rates.get(lever, options.learning_rate),
    )


def cell(task: Task, lever: str, seed: int, settings: WeightSettings, folder: Folder) -> Result:
    """One lever's training on one task and what it scores; read from the folder where it is there."""
    engine = open_engine("seed")
    made_with: dict[str, Any] = {} if lever == "base" else settings.model_dump(mode="json")
    digest = digest_of([task.digest(), engine.digest, made_with])
    if (found := folder.get(task.name, lever, seed, digest)) is not None:
        return found
    try:
        result = trained(task, lever, seed, settings, engine) if lever != "base" else scored(task, Weights())
    except Exception as error:  # noqa: BLE001 - a lever that fails is a result
        result = Result(task.name, lever, seed, failed=f"{type(error).__name__}: {error}")
    folder.put(result, digest)
    return result


def trained(task: Task, lever: str, seed: int, settings: WeightSettings, engine: TransformersEngine) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        weights, notes = LEVERS[lever](without_gold(task), engine, settings, seed, Path(folder))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        result = scored(task, weights)
    rollouts = int(notes.pop("rollouts"))
    notes |= result.notes
    return replace(result, lever=lever, seed=seed, seconds=wall, cpu_seconds=cpu, rollouts=rollouts, notes=notes)


def scored(task: Task, weights: Weights) -> Result:
    """The task's bare program with ``weights`` on test, on an engine of its own. Raises LeverError without a score."""
    candidate, examples = replace(task.base_candidate(), weights=weights), task.examples("test")
    rollouts = run_candidate(candidate, task, open_engine("seed"), examples, split="test", seed=0)
    scores = [r.score for r in rollouts if r.score is not None]
    golds = [s.gold for s in scores if s.gold is not None]
    if len(golds) < len(rollouts):
        raise LeverError(f"{task.name}: {len(rollouts) - len(golds)} test rollouts have no gold or no score")
    failures = Counter(r.reason.partition(":")[0] for r in rollouts if r.failure)
    totals = tuple(s.total for s in scores)
    return Result(
        task.name, "base", 0, tuple(golds), totals,
        policy_failures=failures.total(), notes={"failures": dict(failures)},
    )  # fmt: skip


def shown(result: Result) -> str:
    name = f"{result.task:10} {result.lever:10} seed {result.seed}"
    if result.failed:
        return f"{name}  failed: {result.failed}"
    gold, score = (100 * sum(values) / len(values) for values in (result.golds, result.scores))
    cost = f"{result.seconds:6.1f} s ({result.cpu_seconds:.0f} s CPU)"
    return f"{name}  gold {gold:5.1f}  score {score:5.1f}  {cost}  {result.policy_failures} failed rollouts"


if __name__ == "__main__":
    main()
