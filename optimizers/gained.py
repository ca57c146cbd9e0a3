"""Which examples' scores rose while their gold did not: where a loophole shows. Knows evaluations; judges nothing."""

from __future__ import annotations

from colever.types import Evaluation


def gained(base: Evaluation, child: Evaluation) -> dict[str, float]:
    """By example the rise of its score, the most first; of those that have score and gold in both."""
    before = {n: (s, g) for n, s, g in zip(base.example_ids, base.scores, base.golds, strict=True)}
    rises = dict[str, float]()
    for name, score, gold in zip(child.example_ids, child.scores, child.golds, strict=True):
        old, truth = before.get(name, (None, None))
        known = score is not None and gold is not None and old is not None and truth is not None
        if known and gold <= truth and score > old:  # type: ignore[operator]
            rises[name] = score - old  # type: ignore[operator]
    return dict(sorted(rises.items(), key=lambda item: -item[1]))
