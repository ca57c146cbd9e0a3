"""Where the time of one weight round goes, for a model of a real size: sampling, update, loading and saving weights.

A program of one predictor whose answer is rewarded by its share of even token ids, so that a model of random weights
has something to learn and no completion ends early. DSPy, rollouts, trainer, checkpoints and weights are the real ones.

    python benchmarks/weight_round.py --device cuda --dtype bfloat16 --shape qwen3-0.6b --lengths 180/30

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import dspy
import floors
import shapes
import torch
from dspy.utils.exceptions import AdapterParseError

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Weights


class Answer(dspy.Signature):
    """Answer."""

    text: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Once(dspy.Module):
    """One call; whatever was written is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict(Answer)

    def forward(self, text: str) -> dspy.Prediction:
        try:
            return self.say(text=text)
        except AdapterParseError:
            return dspy.Prediction(answer="")


def even(example: Any, prediction: Any, steps: Any) -> float:
    ids = steps[-1].completion.completion_ids
    return sum(i % 2 == 0 for i in ids) / max(1, len(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes.add_options(parser, "1m")
    parser.add_argument("--lengths", default="180/30", help="prompt tokens, about, and completion tokens")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--peft", choices=("none", "lora"), default="lora")
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    prompt, completion = shapes.lengths(options.lengths)
    with tempfile.TemporaryDirectory() as folder:
        source = shapes.checkpoint(options.shape, options.dtype, options.device, Path(folder) / "model")
        engine = open_engine(source, device=options.device, dtype=options.dtype)
        print(json.dumps(_round(engine, prompt, completion, options, Path(folder))))


def _round(engine: Any, prompt: int, completion: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = [dspy.Example(text=f"{i} " * max(1, (prompt - 100) // 3)).with_inputs("text") for i in range(64)]
    task = Task("even", Once, rows, rows, rows, Rubric([Criterion("even", even)]), max_tokens=completion)
    settings = WeightSettings(
        updates=options.updates, examples_per_update=options.examples, peft=options.peft, save_every=options.updates
    )
    pulls: list[Any] = []
    whole = floors.seconds(
        lambda: pulls.append(
            WeightLever(settings).improve(task.base_candidate(), task, engine, Budget(), 0, folder, NullProgress())
        )
    )
    curves, child = pulls[0].metrics, pulls[0].candidate.weights
    sampling, update = ([v for _, v in curves[f"seconds/{name}"]] for name in ("rollouts", "update"))
    to_base = floors.seconds(lambda: engine.load(Weights()))
    to_child = floors.seconds(lambda: engine.load(child))
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
    made = options.examples * 8 * completion
    return {
        "hardware": shapes.hardware(options.device), "shape": options.shape, "dtype": options.dtype,
        "lengths": options.lengths, "peft": options.peft, "seconds": round(whole, 3),
        "sampling": round(sum(sampling), 3), "update": round(sum(update), 3),
        "other": round(whole - sum(sampling) - sum(update), 3), "load_base": round(to_base, 3),
        "load_child": round(to_child, 3), "sampling_median": round(statistics.median(sampling), 4),
        "update_median": round(statistics.median(update), 4),
        "sampled_tokens_per_s": round(made / statistics.median(sampling)), "peak_gib": round(peak, 2),
        "logprob_gap": max(v for _, v in curves["logprob_gap"]),
        "importance_ratio": curves.get("importance_ratio", [(0, None)])[-1][1],
        "reward": [round(v, 3) for _, v in curves["reward"]],
    }  # fmt: skip


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
