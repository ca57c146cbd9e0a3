"""Which lever next, by what it earned of late: the adaptive schedule. Knows rounds and their costs; runs nothing.

The policy is a pure function of the rounds so far, so a trial that was killed goes on as it would have. Each lever is
pulled once, prompt first (it costs less). From then on:

- A lever's *promise* is the upper end of the one-sided 95 % interval of its last pull's gain on dev (paired over
  examples), per FLOP that the pull cost (per rollout where no FLOPs are counted). The lever with the greater promise
  is next: an uncertain gain is worth another look, and a cheap one too.
- A lever *pays* while that upper end is above ``LEAST`` and its last pull was kept. One that does not pay waits until
  the other lever has changed the candidate: what it could not improve then may have become something else.
- The schedule ends when no lever is left to pull, when dev is all right, or after ``most`` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from colever.types import LeverName, RoundRecord

LEAST = 0.005  # half a point of score
Z = 1.645
ORDER: tuple[LeverName, LeverName] = ("prompt", "weights")
Order = Callable[[Sequence[RoundRecord]], LeverName | None]


def adaptive(most: int) -> Order:
    """The policy, for at most so many rounds."""

    def following(rounds: Sequence[RoundRecord]) -> LeverName | None:
        if len(rounds) >= most or (rounds and rounds[-1].dev.score >= 1):
            return None
        promises = {}
        for lever in ORDER:
            place = _last(rounds, lever)
            if place is None:
                return lever
            pull = rounds[place]
            since = any(r.accepted for r in rounds[place + 1 :])  # of the other lever: this one's last is at ``place``
            upper = gain_bound(pull)
            if since or (pull.accepted and upper > LEAST):
                promises[lever] = upper / (pull.cost.flops or pull.cost.rollouts or 1)
        return max(promises, key=lambda lever: promises[lever], default=None)

    return following


def fixed(schedule: Sequence[LeverName]) -> Order:
    """One lever after the other, as the schedule says."""
    return lambda rounds: schedule[len(rounds)] if len(rounds) < len(schedule) else None


def until(target: float, order: Order) -> Order:
    """The same order, ended once dev has reached the target."""
    return lambda rounds: None if rounds and rounds[-1].dev.score >= target else order(rounds)


def within(rollouts: int, order: Order) -> Order:
    """The same order, ended before a pull that would bring the levers above so many rollouts, as its last one did."""

    def following(rounds: Sequence[RoundRecord]) -> LeverName | None:
        lever, spent = order(rounds), [_of_lever(pull) for pull in rounds]
        place = None if lever is None else _last(rounds, lever)
        return lever if place is None or sum(spent) + spent[place] <= rollouts else None

    return following


def _of_lever(pull: RoundRecord) -> int:
    """A pull's rollouts without those of its child on dev; a child that is its parent was not scored."""
    return pull.cost.rollouts - (len(pull.after.scores) if pull.child.digest != pull.parent.digest else 0)


def gain_bound(pull: RoundRecord) -> float:
    """The upper end of the one-sided 95 % interval of a pull's gain on dev, over the examples scored both times."""
    pairs = zip(pull.before.scores, pull.after.scores, strict=True)
    gains = [after - before for before, after in pairs if before is not None and after is not None]
    if len(gains) < 2:
        return math.inf
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return mean + Z * math.sqrt(variance / len(gains))


def _last(rounds: Sequence[RoundRecord], lever: LeverName) -> int | None:
    return max((place for place, pull in enumerate(rounds) if pull.lever == lever), default=None)
