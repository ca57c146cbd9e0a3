"""A user's own optimizer: it tries one sentence more."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.teleprompt import Teleprompter


class LastWord(Teleprompter):
    def __init__(self, metric: Any, num_threads: int = 1) -> None:
        super().__init__()
        self.metric, self.num_threads = metric, num_threads

    def compile(self, student: dspy.Module, *, trainset: list[dspy.Example], **kwargs: Any) -> dspy.Module:
        candidate = student.deepcopy()
        for predictor in candidate.predictors():
            text = predictor.signature.instructions + " Take your time."
            predictor.signature = predictor.signature.with_instructions(text)
        score = dspy.Evaluate(devset=trainset, metric=self.metric, num_threads=self.num_threads)
        return candidate if score(candidate).score >= score(student).score else student
