"""What a sweep would cost, before it is run: a short probe times what its rounds would do.

The probe answers some train examples and makes two real updates of the weights, which are thrown away. Knows levers
and costs; stores nothing. What it can't know: how lengths change as prompts and weights do, updates that stop early,
combinations of prompts that turn out to be repetitions, and which schedules a search will draw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colever.config import ADAPTIVE, PROMPT_WAYS, SweepConfig, parse_schedule
from colever.errors import UsageError
from colever.optimizers import space
from colever.optimizers.budget import Budget
from colever.optimizers.elsewhere import other_tasks
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import Lever, NullProgress, Progress
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import about
from colever.types import Candidate, Cost, LeverName, Weights

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.sweep import MakeLevers
    from colever.tasks.task import Task

PROBE, UPDATES = 64, 2
WHOLE = {f.name for f in fields(Cost) if f.type == "int"}


@dataclass(frozen=True)
class EstimateRow:
    """One trial: its schedule ("" = a searched one), and the cost that it adds to those before it."""

    schedule: str
    new_rounds: int
    cost: Cost


@dataclass(frozen=True)
class SweepEstimate:
    """The trials, what reading test costs, what the probe did, and the sum of the trials with base on dev."""

    rows: Sequence[EstimateRow]
    search: Cost
    reading: Cost
    probe: Cost
    ways: Mapping[str, Cost] = field(
        default_factory=dict
    )  # one pull of the prompt lever in each way that could be taken

    def priced(self, dollars_per_hour: float) -> SweepEstimate:
        """With the machine's time in dollars."""
        rows = [replace(row, cost=row.cost.priced(dollars_per_hour)) for row in self.rows]
        search, reading, probe = (c.priced(dollars_per_hour) for c in (self.search, self.reading, self.probe))
        ways = {name: cost.priced(dollars_per_hour) for name, cost in self.ways.items()}
        return SweepEstimate(rows, search, reading, probe, ways)


def estimate(
    config: SweepConfig, task: Task, engine: TransformersEngine, levers: MakeLevers, progress: Progress | None = None
) -> SweepEstimate:
    """Probe the task on the engine, which is left with its own weights. Raises what rollouts and updates raise."""
    progress = progress or NullProgress()
    limit = min(PROBE, len(task.train))
    base = task.base_candidate()
    answered = evaluate(
        base, task, engine, "train", seed=config.seed, limit=limit,
        on_done=lambda done: progress.update(done, limit, "probe: train"),
    ).cost  # fmt: skip
    one = scaled(answered, 1 / limit)
    some = any(s == ADAPTIVE or "w" in s.split(",") for s in space.schedules(config)[: config.trials])
    pulled = _probe_weights(config, task, engine, levers, progress) if some else Cost()
    per_rollout = {"prompt": one, "weights": scaled(pulled, 1 / max(1, pulled.rollouts))}
    dev = scaled(one, len(task.dev))

    def rounds(schedule: str) -> dict[LeverName, Cost]:
        """What one round of each lever costs in a trial of this schedule."""
        of = levers(
            *space.with_settings(
                config, schedule, {}, lambda p: levers(p, config.weights)["prompt"].planned(base, task)
            )
        )
        return {n: scaled(per_rollout[n], lever.planned(base, task)) + _written(lever) + dev for n, lever in of.items()}

    def _written(lever: Lever) -> Cost:
        return (
            about(lever.proposer, lever.calls(base, task).proposer_calls) if isinstance(lever, PromptLever) else Cost()
        )

    rows = _rows(config, rounds)
    cells = 6 + len({r.schedule for r in rows} & {"p,w", "w,p", "p,w,p", "w,p,w"}) if rows else 1
    watched = sum(len(split) for split in task.watched.values())
    there = sum(len(other.dev) for other in other_tasks(config)) if some else 0
    return SweepEstimate(
        rows=rows,
        search=sum((r.cost for r in rows), dev),
        reading=scaled(one, cells * len(task.test) + 4 * watched + 3 * there),
        probe=answered + pulled,
        ways=_ways(config, task, base, one, levers),
    )


def _ways(config: SweepConfig, task: Task, base: Candidate, one: Cost, levers: MakeLevers) -> dict[str, Cost]:
    """What a pull would cost in each way: those that this study can't take are left out."""
    found = {}
    for way in dict.fromkeys([config.prompt.way, *PROMPT_WAYS]):
        try:
            lever = levers(config.prompt.model_copy(update={"way": way}), config.weights)["prompt"]
            if isinstance(lever, PromptLever):
                calls = lever.calls(base, task)
                found[way] = scaled(one, calls.rollouts) + about(lever.proposer, calls.proposer_calls)
        except UsageError:
            continue
    return found


def scaled(cost: Cost, factor: float) -> Cost:
    """Every field times ``factor``."""
    return Cost(**{k: round(v * factor) if k in WHOLE else v * factor for k, v in asdict(cost).items()})


def _rows(config: SweepConfig, rounds: Callable[[str], Mapping[LeverName, Cost]]) -> list[EstimateRow]:
    """The first schedules share rounds that cost the same; a searched trial is taken as a round of each lever."""
    seen: set[tuple[str, Cost]] = set()
    rows = []
    for schedule in config.schedules[: config.trials]:
        costs = rounds(schedule)
        if schedule == ADAPTIVE:  # one prompt round, and all slices of the weights
            slices = config.adaptive_slices
            rows.append(EstimateRow(schedule, 1 + slices, costs["prompt"] + scaled(costs["weights"], slices)))
            continue
        letters = schedule.split(",")
        prefixes = [",".join(letters[: i + 1]) for i in range(len(letters))]
        fresh = [(p, cost) for p in prefixes if (p, cost := costs[parse_schedule(p)[-1]]) not in seen]
        seen |= set(fresh)
        rows.append(EstimateRow(schedule, len(fresh), sum((cost for _, cost in fresh), Cost())))
    both = rounds("p,w" if config.trainable else "p,p")
    searched = both["prompt"] + both["weights"] if config.trainable else scaled(both["prompt"], 2)
    return rows + [EstimateRow("", 2, searched)] * max(0, config.trials - len(rows))


def _probe_weights(
    config: SweepConfig, task: Task, engine: TransformersEngine, levers: MakeLevers, progress: Progress
) -> Cost:
    """What two updates from the base cost, sampling included."""
    settings = config.weights.model_copy(update={"updates": UPDATES, "validation": 0})
    lever: Lever = levers(config.prompt, settings)["weights"]
    budget = Budget()
    with tempfile.TemporaryDirectory() as folder:
        lever.improve(task.base_candidate(), task, engine, budget, config.seed, Path(folder), progress)
    engine.load(Weights())
    return budget.spent
