"""Who is told of a study's progress. Knows the events; knows nothing of MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

from colever.looks import Look
from colever.reported import StudyReport
from colever.samples import SampledRollout
from colever.split import Split
from colever.types import Evaluation, RoundRecord, TrialRecord


class Tracker(Protocol):
    """Told in order; every call may come again after an interrupt, with the same content.

    ``key`` tells a study from an earlier one of its name: it is of everything that the trials depend on. ``alone`` is
    false where other processes run the study too: their runs are to be left as they are. ``rollouts`` are those kept
    of base, or of the round's child, on dev. ``round_judged`` follows a round that the guard had a look at.
    ``concurrent``: several processes may tell of their trials at once. ``told`` are the trials told of to their end.
    """

    @property
    def concurrent(self) -> bool: ...
    def study_started(
        self,
        study: str,
        task: str,
        model: str,
        config: Mapping[str, Any],
        plan: str,
        key: str = "",
        splits: Sequence[Split] = (),
        manifest: Mapping[str, Any] | None = None,
        *,
        alone: bool = True,
    ) -> None: ...
    def base_evaluated(self, state: Evaluation, rollouts: Sequence[SampledRollout] = ()) -> None: ...
    def told(self) -> Set[int]: ...
    def trial_started(self, number: int, schedule: str, settings: Mapping[str, Any]) -> None: ...
    def round_finished(
        self, trial: int, index: int, record: RoundRecord, reused: bool, rollouts: Sequence[SampledRollout] = ()
    ) -> None: ...
    def round_judged(self, trial: int, index: int, look: Look) -> None: ...
    def trial_finished(self, record: TrialRecord) -> None: ...
    def study_finished(self, report: StudyReport) -> None: ...
    def study_stopped(self, reason: str, *, alone: bool = True) -> None: ...


class NullTracker:
    """Tells nobody."""

    concurrent = False

    def study_started(
        self,
        study: str,
        task: str,
        model: str,
        config: Mapping[str, Any],
        plan: str,
        key: str = "",
        splits: Sequence[Split] = (),
        manifest: Mapping[str, Any] | None = None,
        *,
        alone: bool = True,
    ) -> None:
        return None

    def base_evaluated(self, state: Evaluation, rollouts: Sequence[SampledRollout] = ()) -> None:
        return None

    def told(self) -> Set[int]:
        return frozenset()

    def trial_started(self, number: int, schedule: str, settings: Mapping[str, Any]) -> None:
        return None

    def round_finished(
        self, trial: int, index: int, record: RoundRecord, reused: bool, rollouts: Sequence[SampledRollout] = ()
    ) -> None:
        return None

    def round_judged(self, trial: int, index: int, look: Look) -> None:
        return None

    def trial_finished(self, record: TrialRecord) -> None:
        return None

    def study_finished(self, report: StudyReport) -> None:
        return None

    def study_stopped(self, reason: str, *, alone: bool = True) -> None:
        return None
