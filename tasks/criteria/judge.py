"""A criterion that asks a language model how good an answer is, on a scale of named choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colever.errors import TaskError
from colever.tasks.criteria.panel import Panel, Vote, checked_options
from colever.tasks.judged import Judged

SCALE = ("bad", "fair", "good")


@dataclass(frozen=True, kw_only=True)
class Judge(Panel):
    """``question`` asked of what is shown; the answer is one of ``choices``, from worst to best.

    Choices count evenly from 0 to 1 unless ``values`` say otherwise. What several votes or models say is combined to
    their mean or median. See ``Panel`` for all other settings.

    Range: 0 to 1. Reads: the fields that are shown. Cost: a call of each model for each vote, once for equal answers.
    """

    question: str
    choices: tuple[str, ...] = SCALE
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("choices", "values"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, str) else tuple(value))
        if not isinstance(self.question, str) or not self.question.strip():
            raise TaskError(f"judge: question is {self.question!r}; accepted: what is asked of each answer")
        checked_options("judge", self.choices, self.values)
        super().__post_init__()

    @property
    def options(self) -> Mapping[str, float]:
        return checked_options("judge", self.choices, self.values)

    def grade(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], labels: Mapping[str, Any], occasion: str = ""
    ) -> Judged:
        material, options = self.shown(inputs, outputs, labels), self.options
        votes = []
        for model, number in self.seats():
            question = f"{self.question}\nThe choices, from worst to best: {', '.join(options)}."
            option, reason = self.put(model, number, material, question, list(options), occasion)
            votes.append(Vote(options[option], option, reason))
        return self.together(votes)
