"""What the guard saw of a study's rounds, each distinct one told once, for its report. Reads records and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colever.looks import Guarded, JudgedRound
from colever.optimizers.gained import gained
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
    """The same with rollouts kept of the child beside each alarm, base's beside them where it was kept.

    Those are shown whose score rose most while their gold did not.
    """
    records = {f"{t.number}.{place}": (t.rounds[0], r) for t in trials for place, r in enumerate(t.rounds, 1)}
    before = {one.example_id: one for one in kept(state.base)} if guard.alarms else {}

    def shown(judged: JudgedRound) -> JudgedRound:
        if not judged.look.alarm:
            return judged
        first, record = records[judged.name]
        rises, after = gained(first.before, record.after), {one.example_id: one for one in kept(record.child)}
        most = sorted((n for n in rises if n in after), key=lambda n: (-rises[n], n not in before))
        return replace(judged, rollouts={name: (before.get(name), after[name]) for name in most[:SHOWN]})

    return replace(guard, rounds=tuple(map(shown, guard.rounds)))
