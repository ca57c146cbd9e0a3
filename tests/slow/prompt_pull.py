"""One pull of the prompt lever on a bundled task and the seed model, to be killed: prints its child and its ledger."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from colever.config import WRITTEN_WAYS, PromptSettings, ProposerSettings
from colever.engines.lm import open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.tasks.load import load_task


def main(way: str, address: str, folder: Path) -> None:
    task, engine, budget = load_task("routing"), open_engine("seed"), Budget()
    asked = ProposerSettings(model=f"scripted@{address}" if way in WRITTEN_WAYS else None)
    settings = PromptSettings(
        way=way, candidates=6, demos=4, screen=12, examples=24, steps=2, rollouts=120, headroom="off"
    )
    lever = PromptLever(settings, open_proposer(asked, engine))
    pull = lever.improve(task.base_candidate(), task, engine, budget, 0, folder, NullProgress())
    spent = {k: v for k, v in dataclasses.asdict(budget.spent).items() if k != "seconds"}
    print(json.dumps({"child": pull.candidate.digest, "notes": pull.notes, "spent": spent}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
