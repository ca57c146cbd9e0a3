"""Which examples an update trains on: all in turn, or rather those whose last group still had something to teach.

Knows example ids, a seed and what each example's last groups were like; knows nothing of rollouts or rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from colever.engines.calls import stable_seed
from colever.errors import LeverError

SPENT = 0.2  # the chance of an example whose last groups were all constant, against 1 for any other

T = TypeVar("T")


def in_turn(examples: Sequence[T], count: int, seed: int, update: int) -> list[T]:
    """``count`` of a shuffled epoch, none twice; a function of seed and update alone."""
    count = _count(examples, count)
    epoch, place = divmod(update, len(examples) // count)
    order = _generator(seed, "epoch", epoch).permutation(len(examples))
    return [examples[i] for i in order[place * count : (place + 1) * count]]


def by_signal(
    examples: Sequence[tuple[str, T]], count: int, seed: int, update: int, spent: Mapping[str, bool]
) -> list[tuple[str, T]]:
    """``count`` drawn without replacement, those with ``spent`` (by id) at ``SPENT`` the chance of the others.

    A weighted draw by exponential keys (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003): a function of
    seed, update and ``spent``, which is a function of the updates before.
    """
    count = _count(examples, count)
    keys = _generator(seed, "curriculum", update).exponential(size=len(examples))
    weights = np.array([SPENT if spent.get(name, False) else 1.0 for name, _ in examples])
    return [examples[i] for i in np.argsort(keys / weights, kind="stable")[:count]]


def remember(spent: dict[str, bool], chosen: Iterable[str], informative: Iterable[str]) -> None:
    """Note which of the ``chosen`` examples had no group with two different rewards."""
    kept = set(informative)
    spent.update({name: name not in kept for name in chosen})


def _count(examples: Sequence[T], count: int) -> int:
    if not examples:
        raise LeverError("weights: the train split is empty")
    return min(count, len(examples))


def _generator(seed: int, what: str, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=stable_seed(seed, what, number)))
