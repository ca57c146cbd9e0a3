"""Criterion ``similarity``: how near a text comes to the label's, where no two right answers are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dspy

from colever.tasks.criteria.embedding import checkpoint_files, embedded_cosine, hashed_cosine
from colever.tasks.criteria.fields import clipped, labels_of, read_text, shown
from colever.tasks.criteria.settings import in_unit, not_empty, refuse, settle
from colever.tasks.source import contents_digest
from colever.types import Step


@dataclass(frozen=True)
class Similarity:
    """The cosine of the field's text and the label's, as it lies between ``floor`` (0) and 1; below the floor 0.

    ``method``: ``words`` (single words and pairs, by hash), ``characters`` (runs of 3 to 5), or ``model``, the mean of
    the hidden states of a checkpoint in the folder ``model`` (a small sentence model; 512 tokens at most). Texts of the
    same language have cosines far above 0 under most models: set the floor to what unrelated answers get. A label that
    is a list holds several right answers: the nearest counts. Nearness is no proof: keep its weight small.

    Range: [0, 1]. Reads: the field, the label. Cost: about a millisecond; with a model one of its passes, on the CPU.
    """

    field: str
    label: str = ""
    method: Literal["words", "characters", "model"] = "words"
    model: str = ""
    floor: float = 0.0

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        in_unit(self, "floor")
        if self.floor == 1:
            refuse(self, "floor", "a number below 1")
        if (self.method == "model") != bool(self.model):
            refuse(self, "model", "a checkpoint's folder with method model, none with another")
        if self.model:
            files = checkpoint_files(self.model)
            if not files:
                refuse(self, "model", "a folder with config.json, a tokenizer and *.safetensors")
            object.__setattr__(self, "_content", contents_digest(files))  # so that the rubric's digest has it

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        text = read_text(prediction, steps, self.field)
        labels = [shown(label) for label in labels_of(example, self.label or self.field)]
        if not (text or "").strip():
            return 0.0
        cosine = max((self._cosine(text or "", label) for label in labels if label is not None), default=0.0)
        return clipped((cosine - self.floor) / (1 - self.floor))

    def _cosine(self, text: str, label: str) -> float:
        if self.method == "model":
            return embedded_cosine(text, label, self.model)
        return hashed_cosine(text, label, {"words": "word", "characters": "char_wb"}[self.method])
