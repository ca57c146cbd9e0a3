"""Demos chosen call by call: of all that a predictor has, those whose inputs are most like the call's own.

Knows predictors and demos. The search is ``dspy.KNN``'s, over TF-IDF vectors of the inputs' words: a function of the
demos alone, so that the demos are the index and a saved candidate finds the same ones everywhere. In a rollout of an
example that is itself among the demos (of train, in a weight round) its own is left out: it would read its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from colever.engines.calls import current_call

_WORDS = r"\w+|[^\w\s]"  # a sign is a word: 3 + 4 is not 3 * 4


class Nearest:
    """The demos of one predictor, to be asked for the ``k`` most like some inputs; a copy of it is the index itself."""

    def __init__(self, demos: Sequence[Any], inputs: Sequence[str], k: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.demos, self.inputs, self.k = tuple(demos), tuple(inputs), k
        texts = [self._text(demo) for demo in demos]
        words = TfidfVectorizer(token_pattern=_WORDS, ngram_range=(1, 2), sublinear_tf=True).fit(texts)
        rows = [dspy.Example(place=i, **self._shown(d)).with_inputs(*self._shown(d)) for i, d in enumerate(demos)]
        self._knn = dspy.KNN(len(rows), rows, vectorizer=lambda asked: words.transform(asked).toarray())

    def __deepcopy__(self, memo: dict[int, Any]) -> Nearest:
        return self

    def like(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The k most similar, the most similar last: next to the question."""
        ranked = [self.demos[row.place] for row in self._knn(**self._shown(inputs))]
        return [demo for demo in ranked if not self._is_own(demo)][: self.k][::-1]

    def _is_own(self, demo: Mapping[str, Any]) -> bool:
        """Whether it shows the very inputs of the example that is run."""
        recorder = current_call.get()
        asked = {} if recorder is None else {name: str(value) for name, value in recorder.inputs.items()}
        shown = self._shown(demo)
        return bool(shown) and all(asked.get(name) == value for name, value in shown.items())

    def _shown(self, fields: Mapping[str, Any]) -> dict[str, str]:
        return {name: str(fields[name]) for name in self.inputs if name in fields}

    def _text(self, fields: Mapping[str, Any]) -> str:
        return " | ".join(f"{name}: {value}" for name, value in self._shown(fields).items()) or "-"


class NearestPredict(dspy.Predict):
    """A predictor that shows, of its demos, the ``nearest`` most like the call; 0: all of them."""

    nearest = 0
    _index: Nearest | None = None

    def reset(self) -> None:
        super().reset()
        self.nearest = 0

    def forward(self, **kwargs: Any) -> dspy.Prediction:
        return super().forward(**self._with_demos(kwargs))

    async def aforward(self, **kwargs: Any) -> dspy.Prediction:
        return await super().aforward(**self._with_demos(kwargs))

    def _with_demos(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        index = None if "demos" in kwargs else self.index()
        return kwargs if index is None else {**kwargs, "demos": index.like(kwargs)}

    def index(self) -> Nearest | None:
        """Made anew where the demos are others; None where all are shown. Copies share it."""
        if not 0 < self.nearest < len(self.demos):
            return None
        index = self._index
        if index is None or index.k != self.nearest or index.demos != tuple(self.demos):
            index = self._index = Nearest(self.demos, list(self.signature.input_fields), self.nearest)
        return index


def show_nearest(predictor: dspy.Predict, k: int) -> None:
    """Make ``predictor`` show the ``k`` nearest of its demos; 0: all, as any predictor does."""
    if k == nearest_of(predictor):
        return
    if not isinstance(predictor, NearestPredict):
        kind, made = type(predictor), NearestPredict
        if kind is not dspy.Predict:
            metaclass: Any = type(kind)
            made = metaclass(kind.__name__, (NearestPredict, kind), {"__module__": kind.__module__})
        predictor.__class__ = made
    predictor.nearest = k  # type: ignore[attr-defined]
    predictor.index()  # type: ignore[attr-defined]  # once, for all copies


def nearest_of(predictor: Any) -> int:
    """How many of its demos a predictor shows at a call; 0: all."""
    return int(getattr(predictor, "nearest", 0)) if isinstance(predictor, NearestPredict) else 0
