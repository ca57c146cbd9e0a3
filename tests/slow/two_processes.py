"""One pull in as many processes as launch this script; prints what the pull came to as JSON on the main process.

accelerate launch --cpu --num_processes 2 two_processes.py CHECKPOINT WORKDIR '{"loss": "grpo"}'
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from test_predictor_adapters import pair_task
from test_weight_lever import make_task, settings

from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.processes import Team
from colever.optimizers.weight_lever import WeightLever


def main() -> None:
    checkpoint, workdir, changes = sys.argv[1:]
    torch.set_num_threads(1)
    budget = Budget()
    how = settings(examples_per_update=5, group_size=4, learning_rate=1e-3, **json.loads(changes))
    task = pair_task() if how.adapters == "per_predictor" else make_task()
    engine = open_engine(checkpoint)
    pull = WeightLever(how).improve(task.base_candidate(), task, engine, budget, 3, Path(workdir), NullProgress())
    spent = dataclasses.asdict(budget.spent)
    spent.pop("seconds")
    if Team.current().main:
        curves = {name: curve for name, curve in pull.metrics.items() if not name.startswith("seconds")}
        print(json.dumps({"processes": Team.current().size, "spent": spent, "curves": curves}), flush=True)
    if Team.current().size > 1:  # nobody leaves while another still listens
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
