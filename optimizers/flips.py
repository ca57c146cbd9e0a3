"""Which examples a candidate turned from wrong to right and back. Knows two evaluations; knows no candidates."""

from __future__ import annotations

from colever.reported import Flips
from colever.types import Evaluation

RIGHT = 1 - 1e-9  # full marks, rounding aside


def flips_between(before: Evaluation, after: Evaluation, *, gold: bool) -> Flips | None:
    """The flips over the examples that both evaluations scored, matched by id; None if there is no such example."""
    was, now = (_right(evaluation, gold) for evaluation in (before, after))
    shared = [name for name in was if name in now]
    if not shared:
        return None
    gained = tuple(name for name in shared if now[name] and not was[name])
    lost = tuple(name for name in shared if was[name] and not now[name])
    return Flips(len(shared), gained, lost, mcnemar(len(gained), len(lost)))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test: gains and losses as fair coin tosses (McNemar 1947; a sign test)."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _right(evaluation: Evaluation, gold: bool) -> dict[str, bool]:
    values = evaluation.golds if gold else evaluation.scores
    return {
        name: value >= RIGHT for name, value in zip(evaluation.example_ids, values, strict=True) if value is not None
    }
