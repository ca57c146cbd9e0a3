"""The kept rollouts of a stored study: of a round, or of base beside the winner on test. Reads files; runs nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from colever.errors import UsageError
from colever.optimizers.attribution import choose_winner
from colever.optimizers.store import EvaluationStore
from colever.optimizers.study import StudyFolder, StudyState, priced
from colever.reported import StudyReport
from colever.samples import SampledRollout
from colever.types import Candidate


def with_rollouts(report: StudyReport, folder: StudyFolder) -> StudyReport:
    """The report with base's and the winner's rollouts of the test examples that were kept of both.

    Flipped examples among them get their fields. A study whose test is unread stays as it is.
    """
    state = folder.state()
    if state is None or not report.finished or not report.path:
        return report
    before = {r.example_id: r for r in _kept(folder, state, state.base, "test")}
    after = {r.example_id: r for r in _kept(folder, state, report.path[-1].kept, "test")}
    pairs = {name: (before[name], after[name]) for name in before if name in after}
    if report.flips is None:
        return replace(report, rollouts=pairs)
    flipped = {*report.flips.gained, *report.flips.lost}
    fields = {name: {**one.inputs, **one.expected} for name, (one, _) in pairs.items() if name in flipped}
    return replace(report, rollouts=pairs, flips=replace(report.flips, fields={**report.flips.fields, **fields}))


def rollouts_of(folder: StudyFolder, which: str, split: str) -> Sequence[SampledRollout]:
    """The rollouts kept of ``base``, ``winner`` or a round such as ``2.1`` (trial 2, its first round) on a split.

    Raises UsageError for a round that there is not, and where none were kept.
    """
    state = folder.state()
    if state is None:
        raise UsageError(f"study {folder.name!r} has nothing to show yet; run its sweep")
    if split not in (known := ("dev", "test", *state.watched)):
        raise UsageError(f"--split {split!r}: accepted: {', '.join(known)}")
    kept = _kept(folder, state, _candidate(folder, state, which), split)
    if not kept:
        raise UsageError(
            f"no rollouts of {which} on {split} were kept: test is read for the arms when the study ends, a study with "
            "sample_rollouts=0 keeps none, and those evaluated before there were samples have none"
        )
    return kept


def _kept(folder: StudyFolder, state: StudyState, candidate: Candidate, split: str) -> tuple[SampledRollout, ...]:
    return EvaluationStore(folder.home).rollouts(state.grounds.evaluation_key(candidate, split, state.seed))


def _candidate(folder: StudyFolder, state: StudyState, which: str) -> Candidate:
    if which == "base":
        return state.base
    trials = [priced(t, state.dollars_per_hour) for t in folder.trials(state)]
    if which == "winner" and (winner := choose_winner(state, trials)) is not None:
        return winner.candidate
    rounds = {f"{t.number}.{place}": r.child for t in trials for place, r in enumerate(t.rounds, 1)}
    if which not in rounds:
        shape = "" if re.fullmatch(r"\d+\.\d+", which) else "base, winner, or TRIAL.ROUND, here "
        raise UsageError(f"round {which!r}: accepted: {shape}{', '.join(rounds) or 'none yet'}")
    return rounds[which]
