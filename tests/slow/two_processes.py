"""Pulls in as many processes as launch this script; each leaves WORKDIR/CASE/result-RANK.json.

torchrun --standalone --nproc_per_node 2 two_processes.py CHECKPOINT WORKDIR '{"CASE": {"loss": "grpo"}}'

A case is weight settings; ``task`` in it names one of ``TASKS``, and ``sharding`` is the lever's. An error of Colever
is a result too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import dspy
import torch
from test_predictor_adapters import pair_task
from test_weight_lever import Echo, has_rare_letter, make_task, settings, vowel_share

from colever.engines.lm import open_engine
from colever.errors import ColeverError
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.processes import Team
from colever.optimizers.weight_lever import WeightLever

RANK, LOCAL = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))


class Twice(Echo):
    """Two calls, the second on what the first wrote."""

    def forward(self, word: str) -> dspy.Prediction:
        return super().forward(word=super().forward(word=word).answer or word)


def breaks_in_second(example: Any, prediction: Any, steps: Any) -> float:
    """A rubric with a fault that one machine alone has."""
    if RANK == 1:
        raise ZeroDivisionError("no such luck")
    return vowel_share(example, prediction, steps)


TASKS = {
    "vowels": make_task,
    "rare": lambda: make_task(has_rare_letter),
    "pair": pair_task,
    "twice": lambda: dataclasses.replace(make_task(), program=Twice),
    "breaks": lambda: make_task(breaks_in_second),
}


def pull(engine: Any, folder: Path, task: str = "vowels", sharding: str = "none", **changes: Any) -> dict[str, Any]:
    small = {"examples_per_update": 5, "group_size": 4, "learning_rate": 1e-3, "updates": 3}
    budget, asked = Budget(), TASKS[task]()
    lever = WeightLever(settings(**{**small, **changes}), sharding)
    try:
        done = lever.improve(asked.base_candidate(), asked, engine, budget, 3, folder, NullProgress())
    except ColeverError as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        engine.load(asked.base_candidate().weights)
    spent = dataclasses.asdict(budget.spent)
    spent.pop("seconds")
    curves = {name: curve for name, curve in done.metrics.items() if not name.startswith("seconds")}
    weights = done.candidate.weights
    return {"spent": spent, "curves": curves, "notes": done.notes, "digest": weights.digest, "weights": weights.path}


def main() -> None:
    checkpoint, workdir, cases = sys.argv[1:]
    torch.set_num_threads(1)
    engine = open_engine(checkpoint, device=f"cuda:{LOCAL}" if torch.cuda.is_available() else "cpu")
    for name, changes in json.loads(cases).items():
        folder = Path(workdir) / name
        folder.mkdir(parents=True, exist_ok=True)
        result = pull(engine, folder, **changes) | {"processes": Team.current().size}
        (folder / f"result-{RANK}.json").write_text(json.dumps(result))
    if Team.current().size > 1:  # nobody leaves while another still listens
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
