"""Rollouts kept to be looked at, as an evaluation stores them: frozen, JSON, no tokens. Nothing computes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SampledStep:
    """One predictor call in words: what the model read and wrote, and the fields on both sides of it."""

    predictor: str
    prompt: str  # what the model read, its template's signs included (an API's are not known); cut where it is long
    completion: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)  # {} where the completion could not be parsed
    failed: bool = False
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class SampledRollout:
    """One rollout with its example and its score (None: the infrastructure failed)."""

    example_id: str
    inputs: Mapping[str, Any]  # the example's
    expected: Mapping[str, Any]  # the example's other fields
    outputs: Mapping[str, Any]  # the prediction's
    steps: tuple[SampledStep, ...] = ()
    total: float | None = None
    gold: float | None = None
    by_criterion: Mapping[str, float] = field(default_factory=dict)
    feedback: str = ""
    failure: str | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SampledRollout:
        return cls(**{**data, "steps": tuple(SampledStep(**step) for step in data["steps"])})


def encodable(text: str) -> str:
    """A model may write half of a surrogate pair, which has no encoding: it becomes ``?``."""
    return text.encode(errors="replace").decode()


def cut(text: str, limit: int) -> str:
    """Its beginning and its end where it is longer: a prompt says what to do first and asks last."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"
