"""What a search over rubrics proposes: weights and gates of the criteria that there are. Knows tables and Optuna.

Each criterion has two dimensions: its weight relative to the heaviest, in [0, 1], and its gate (as it is, none, or 1).
A criterion that is only watched (weight 0) is a candidate like the others: so new criteria come into a search.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from colever.optimizers.trials import sampler_of
from colever.tasks.rubric import Rubric
from colever.tasks.rubric_tables import Tables

GATES = ("as it is", "none", "1")
Params = Mapping[str, Any]


def proposal(rubric: Rubric, known: Sequence[tuple[Params, float]], sampler: str, seed: int) -> Params:
    """The next point, from those whose values are known; equal arguments propose the same, in any process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = _space(rubric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=sampler_of(sampler, seed))
        study.add_trials(
            [optuna.create_trial(params=dict(at), distributions=space, value=value) for at, value in known]
        )
        return dict(study.ask(space).params)


def point(rubric: Rubric) -> Params:
    """Where a rubric itself lies."""
    heaviest = max(c.weight for c in rubric.criteria)
    return {
        **{f"weight.{c.name}": c.weight / heaviest for c in rubric.criteria},
        **{f"gate.{c.name}": GATES[0] for c in rubric.criteria},
    }


def point_of(tables: Tables, root: Tables) -> Params:
    """The point that a search took ``tables`` from."""
    found: dict[str, Any] = {}
    for table, before in zip(tables, root, strict=True):
        gate = table.get("gate") if table.get("gate") != before.get("gate") else None
        found[f"weight.{table['name']}"] = float(table["weight"])
        found[f"gate.{table['name']}"] = "as it is" if gate is None else "none" if gate is False else "1"
    return found


def at(tables: Tables, params: Params) -> list[dict[str, Any]]:
    """The tables with a point's weights and gates in place."""
    made = []
    for table in tables:
        gate = params[f"gate.{table['name']}"]
        changed = {**table, "weight": round(float(params[f"weight.{table['name']}"]), 2)}
        if gate != GATES[0]:
            changed["gate"] = False if gate == "none" else 1.0
        made.append(changed)
    return made


def _space(rubric: Rubric) -> dict[str, optuna.distributions.BaseDistribution]:
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for criterion in rubric.criteria:
        found[f"weight.{criterion.name}"] = optuna.distributions.FloatDistribution(0.0, 1.0)
        found[f"gate.{criterion.name}"] = optuna.distributions.CategoricalDistribution(GATES)
    return found
