"""What a command calls ``base``, ``winner`` or ``2.1``: the candidates of a stored study by name. Reads files only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from colever.errors import UsageError
from colever.optimizers.attribution import choose_winner
from colever.optimizers.study import StudyFolder, StudyState, priced
from colever.reported import NamedPrompts
from colever.types import Candidate, RoundRecord, TrialRecord


@dataclass(frozen=True)
class NamedRound:
    """A candidate, and what it is compared with: a round's child with the candidate that it was made from."""

    name: str
    candidate: Candidate
    parent: str = "base"
    record: RoundRecord | None = None


def find_round(folder: StudyFolder, state: StudyState, which: str) -> NamedRound:
    """``base``, ``winner`` (compared with base) or a round such as ``2.1``, trial 2's first: what it made, kept or not.

    Raises UsageError that lists the rounds that there are.
    """
    if which == "base":
        return NamedRound("base", state.base, "")
    trials = [priced(t, state.dollars_per_hour) for t in folder.trials(state)]
    if which == "winner" and (winner := choose_winner(state, trials)) is not None:
        return NamedRound("winner", winner.candidate)
    rounds = _rounds(trials)
    if which not in rounds:
        shape = "" if re.fullmatch(r"\d+\.\d+", which) else "base, winner, or TRIAL.ROUND, here "
        raise UsageError(f"round {which!r}: accepted: {shape}{', '.join(rounds) or 'none yet'}")
    return rounds[which]


def prompts_of(folder: StudyFolder, which: str, against: str = "") -> tuple[NamedPrompts, NamedPrompts | None]:
    """A round's prompts, and those that they are compared with: ``against``, or its parent's (of base: none).

    Raises UsageError for a round that there is not.
    """
    state = folder.state()
    if state is None:
        raise UsageError(f"study {folder.name!r} has nothing to show yet; run its sweep")
    evaluations = folder.evaluations(state)

    def named(name: str) -> NamedPrompts:
        found = find_round(folder, state, name)
        measured = evaluations(found.candidate, "dev")
        tokens = measured.prompt_tokens if measured else {}
        return NamedPrompts(folder.name, name, found.candidate, found.parent, tokens, found.record)

    shown = named(which)
    other = against or shown.parent
    return shown, named(other) if other else None


def _rounds(trials: Sequence[TrialRecord]) -> dict[str, NamedRound]:
    """By name; the parent is the last round before it in its trial that was kept, or base."""
    found = {}
    for trial in trials:
        parent = "base"
        for place, record in enumerate(trial.rounds, 1):
            name = f"{trial.number}.{place}"
            found[name] = NamedRound(name, record.child, parent, record)
            parent = name if record.accepted else parent
    return found
