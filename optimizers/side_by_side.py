"""The kept rollouts of a stored study: of a round, or of base beside the winner on test. Reads files; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from colever.errors import UsageError
from colever.optimizers.judged import with_evidence
from colever.optimizers.named_rounds import find_round
from colever.optimizers.store import KEPT, EvaluationStore
from colever.optimizers.study import StudyFolder, StudyState
from colever.reported import StudyReport
from colever.samples import SampledRollout
from colever.types import Candidate


def with_rollouts(report: StudyReport, folder: StudyFolder) -> StudyReport:
    """The report with base's and the winner's rollouts of the test examples that were kept of both.

    Flipped examples among them get their fields, and the guard's alarms those kept of dev. A study whose test is unread
    gets these alone.
    """
    state = folder.state()
    if state is None:
        return report
    if report.guard is not None:
        trials = folder.trials(state)
        guard = with_evidence(report.guard, state, trials, lambda c: _evidence(folder, state, c))
        report = replace(report, guard=guard)
    if not report.finished or not report.path:
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
    kept = _kept(folder, state, find_round(folder, state, which).candidate, split)
    if not kept:
        raise UsageError(
            f"no rollouts of {which} on {split} were kept: test is read for the arms when the study ends, a study with "
            "sample_rollouts=0 keeps none, and those evaluated before there were samples have none"
        )
    return kept


def _kept(
    folder: StudyFolder, state: StudyState, candidate: Candidate, split: str, kept: str = "rollouts"
) -> tuple[SampledRollout, ...]:
    return EvaluationStore(folder.home).rollouts(state.grounds.evaluation_key(candidate, split, state.seed), kept)


def _evidence(folder: StudyFolder, state: StudyState, candidate: Candidate) -> list[SampledRollout]:
    """All that was kept on dev."""
    return [r for kept in KEPT for r in _kept(folder, state, candidate, "dev", kept)]
