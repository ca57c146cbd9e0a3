"""One tuning of the toy task's misleading rubric in a process of its own, to be killed: ``HOME SERVER-ADDRESS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_rubric_tuning import MISLED, config, levers, misled_task
from toy import ToyEngine

from colever.config import ProposerSettings
from colever.optimizers.proposer import open_proposer
from colever.optimizers.tuning import tune
from colever.optimizers.tuning_plan import TuningPlan
from colever.tasks.rubric_tables import tables_of


def main(home: str, address: str) -> None:
    proposer = ProposerSettings(model=f"scripted@{address}", retry_wait=0.01)
    settings, engine = config(proposer=proposer.model_dump()), ToyEngine()
    plan = TuningPlan("p,w", trials=6, designs=2, seeds=2)
    lm = open_proposer(proposer, engine)  # type: ignore[arg-type]
    given: Any = (settings, misled_task(), tables_of(MISLED), engine, Path(home), plan)
    found = tune(*given, levers=levers, proposer=lm)
    cost = {k: v for k, v in found.to_json()["cost"].items() if k != "seconds"}
    print(json.dumps({**found.to_json(), "cost": cost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
