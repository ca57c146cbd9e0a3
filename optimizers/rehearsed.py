"""A rollout as prompt optimizers may know it: JSON values, which a journal keeps and gives back the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colever.types import Rollout, Score


@dataclass(frozen=True)
class Rehearsed:
    """One rollout in the form that a journal keeps: what the optimizer may know of it, as JSON values."""

    example_id: str
    outputs: Mapping[str, Any]
    calls: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any], bool, str], ...]  # predictor, in, out, failed, text
    total: float
    by_criterion: Mapping[str, float]
    feedback: str
    failure: str | None
    reason: str
    reasons: Mapping[str, str] = field(default_factory=dict)  # by criterion

    @classmethod
    def of(cls, rollout: Rollout) -> Rehearsed:
        score = rollout.score
        assert score is not None
        calls = tuple((s.predictor, s.inputs, s.outputs, s.failed, s.completion.text) for s in rollout.steps)
        return cls(
            rollout.example_id, rollout.outputs, calls, score.total, score.by_criterion, score.feedback,
            rollout.failure, rollout.reason, score.reasons,
        )  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rehearsed:
        return cls(**{**data, "calls": tuple(tuple(call) for call in data["calls"])})

    @property
    def score(self) -> Score:
        """Without gold."""
        return Score(self.total, self.by_criterion, self.feedback, reasons=self.reasons)
