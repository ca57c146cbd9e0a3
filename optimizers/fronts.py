"""What can be had for which cost: every stop along every trial, the front of them, the cheapest to each level.

Reads records only. A stop is the candidate that was kept after some rounds of a trial; its cost is that of these
rounds, whichever trials share them. The front is of dev scores, as every choice is; levels are of gold where the task
has gold, as the report's other thresholds are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from colever.reported import Level, Stop
from colever.types import Candidate, Cost, Evaluation, TrialRecord

AXES: Mapping[str, Callable[[Cost], float]] = {
    "flops": lambda cost: cost.flops,
    "rollouts": lambda cost: cost.rollouts,
    "tokens": lambda cost: cost.tokens,
    "seconds": lambda cost: cost.seconds,
    "dollars": lambda cost: cost.dollars,
}


@dataclass(frozen=True)
class Place:
    """A stop with its candidate; ``arm`` is base, prompt, weights or both, by the levers that made it."""

    stop: Stop
    candidate: Candidate
    arm: str


def places(base: Candidate, base_dev: Evaluation, trials: Sequence[TrialRecord], *, gold: bool) -> list[Place]:
    """The base, then every trial's stops, in order."""
    found = [_place(-1, "", Cost(), base_dev, base, "base", gold)]
    for trial in trials:
        spent = Cost()
        for end, record in enumerate(trial.rounds, 1):
            spent = spent + record.cost
            levers = {r.lever for r in trial.rounds[:end]}
            arm = "both" if len(levers) == 2 else record.lever
            schedule = ",".join(r.lever[0] for r in trial.rounds[:end])
            found.append(_place(trial.number, schedule, spent, record.dev, record.kept, arm, gold))
    return found


def front(found: Sequence[Place], axis: str) -> list[Place]:
    """Those that no other beats: by rising cost, each with a higher dev score than all that cost less."""
    best: list[Place] = []
    for place in sorted(found, key=lambda p: (AXES[axis](p.stop.cost), -p.stop.dev_score)):
        if not best or place.stop.dev_score > best[-1].stop.dev_score:
            best.append(place)
    return best


def levels(found: Sequence[Place], axis: str, at: Sequence[float]) -> list[Level]:
    """For each level, the cheapest stop of each arm at which dev is there."""
    made = []
    for level in at:
        cheapest: dict[str, Stop] = {}
        for place in sorted(found, key=lambda p: AXES[axis](p.stop.cost)):
            if place.stop.dev >= level - 1e-12:
                cheapest.setdefault(place.arm, place.stop)
        made.append(Level(level, cheapest))
    return made


def cost_to(target: float, trial: TrialRecord, axis: str) -> float | None:
    """What the trial spent until its dev score had reached the target, or None where it never did."""
    spent = Cost()
    for record in trial.rounds:
        spent = spent + record.cost
        if record.dev.score >= target:
            return AXES[axis](spent)
    return None


def _place(trial: int, schedule: str, cost: Cost, dev: Evaluation, candidate: Candidate, arm: str, gold: bool) -> Place:
    shown = dev.gold if gold and dev.gold is not None else dev.score
    return Place(Stop(trial, schedule, cost, dev.score, shown), candidate, arm)
