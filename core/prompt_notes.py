"""What a prompt round's notes say of how its child was chosen. Reads notes, and takes none for granted.

The notes of rounds made before there were such hold less: what is missing is None, or an empty string.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colever.types import RoundRecord


@dataclass(frozen=True)
class Headroom:
    """What a test of the lever's room said before its search: the best candidate's gain on train, with its interval."""

    verdict: str  # go, no-go
    gain: float
    low: float
    high: float
    candidates: int
    examples: int
    rollouts: int  # what it cost


@dataclass(frozen=True)
class PromptNotes:
    """``train`` is the mean rubric score on train for which the child was chosen; ``parent`` its parent's there."""

    way: str
    chosen: str
    train: float | None = None
    parent: float | None = None
    examples: int | None = None
    headroom: Headroom | None = None

    @classmethod
    def of(cls, record: RoundRecord) -> PromptNotes:
        """Of a round's record, whatever its notes hold."""
        notes = record.notes
        selected: Mapping[str, Any] = notes.get("selected") or {}
        room: Mapping[str, Any] = notes.get("headroom") or {}
        return cls(
            way=str(notes.get("way") or ""),
            chosen=str(notes.get("chosen") or ""),
            train=selected.get("child"),
            parent=selected.get("parent"),
            examples=selected.get("examples"),
            headroom=Headroom(**{name: room[name] for name in Headroom.__dataclass_fields__}) if room else None,
        )


def drop_of(record: RoundRecord) -> float | None:
    """The train score for which the child was chosen less its dev score; None where the notes have none."""
    train = PromptNotes.of(record).train
    return None if train is None else train - record.after.score
