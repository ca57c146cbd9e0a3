"""What the guard saw of a study's rounds, each distinct one told once, for its report. Reads records and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colever.looks import Guarded, JudgedRound
from colever.optimizers.guard import looks
from colever.types import Candidate, Evaluation, TrialRecord

if TYPE_CHECKING:
    from colever.optimizers.study import StudyState
    from colever.samples import SampledRollout

SHOWN = 4  # rollouts beside each other, of one alarm
Rollouts = Callable[[Candidate], Sequence["SampledRollout"]]  # those kept of a candidate on dev


def guarded(state: StudyState, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> Guarded | None:
    """The guard's part of the report; None where it is off."""
    rules = state.guard
    if rules.on_hacking == "off":
        return None
    if base_dev.gold is None:
        return Guarded(rules.on_hacking, rules.margin, blind=True)
    found: dict[str, JudgedRound] = {}
    for trial in trials:
        seen = looks(trial.rounds, rules)
        for place, (record, look) in enumerate(zip(trial.rounds, seen, strict=True), 1):
            if look is not None and record.key not in found:
                name, refused = f"{trial.number}.{place}", look.alarm and not record.accepted
                after = (record.after.score, record.after.gold or 0.0)
                found[record.key] = JudgedRound(name, record.lever, *after, look, record.key, refused)
    return Guarded(rules.on_hacking, rules.margin, False, (base_dev.score, base_dev.gold), tuple(found.values()))


def with_evidence(guard: Guarded, state: StudyState, trials: Sequence[TrialRecord], kept: Rollouts) -> Guarded:
    """The same with rollouts kept of base and child beside each alarm: those whose score rose and whose gold did not.

    Of all kept examples, for the few that gained most are seldom among them.
    """
    children = {f"{t.number}.{place}": r.child for t in trials for place, r in enumerate(t.rounds, 1)}
    before = {one.example_id: one for one in kept(state.base)} if guard.alarms else {}

    def shown(judged: JudgedRound) -> JudgedRound:
        if not judged.look.alarm:
            return judged
        after = {one.example_id: one for one in kept(children[judged.name])}
        both = {name: (before[name], after[name]) for name in after if name in before}
        risen = sorted((n for n in both if _rise(*both[n]) > 0), key=lambda n: -_rise(*both[n]))
        return replace(judged, rollouts={name: both[name] for name in risen[:SHOWN]})

    return replace(guard, rounds=tuple(map(shown, guard.rounds)))


def _rise(before: SampledRollout, after: SampledRollout) -> float:
    """Of the score; 0 where gold rose too, or either is not known."""
    if before.total is None or after.total is None or before.gold is None or after.gold is None:
        return 0.0
    return after.total - before.total if after.gold <= before.gold else 0.0
