"""The pulls of the prompt lever in a study's trials, each with what it changed on dev. Reads records only."""

from __future__ import annotations

from collections.abc import Sequence

from colever.optimizers.statistics import paired_effect
from colever.reported import PromptRound
from colever.types import TrialRecord


def prompt_rounds(trials: Sequence[TrialRecord]) -> list[PromptRound]:
    """Every distinct one, under the first trial that has it; the change in dev score is paired over dev's examples."""
    found: dict[str, PromptRound] = {}
    for trial in trials:
        for place, record in enumerate(trial.rounds, 1):
            if record.lever == "prompt" and record.key not in found:
                change = paired_effect([(1, record.after.scores), (-1, record.before.scores)])
                found[record.key] = PromptRound(f"{trial.number}.{place}", record, change)
    return list(found.values())
