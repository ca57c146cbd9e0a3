"""The guard against reward hacking: the score rises and the truth does not. Knows evaluations; runs and stores nothing.

After every round whose child scored better, that child is set beside the base of its trial, on dev, pair by pair of
examples. What counts as false is the gain in score that gold does not account for:

    false gain = mean over examples of [Δscore − worth · Δgold] − form

- *worth* is the rubric's own relation of the two at base: by least squares, how much more a right answer scores than a
  wrong one. Score and gold have different scales (a wrong answer in the right form scores above 0), so that their plain
  difference would let every point of gold hide 1 − worth points of anything else. ``PRIOR`` further right answers with
  full marks are counted in: a base that is hardly ever right says little of what being right is worth.
- *form* is what was gained by form, up to ``form_allowance``: an answer has to be read before it can be right, so form
  comes first in an honest run too. It is what criteria marked ``form`` added to the score, or what answers that could
  not be parsed at base and can be now brought, whichever is more. What form adds beyond the allowance is false.

The alarm: the lower end of the one-sided t interval of the false gain lies above ``margin``. Look k of a trial has the
level α / (k (k + 1)); over any number of looks that sums to α (a union bound, whatever the looks have in common), and
the first look, at which a loophole that is easy shows already, has half of it.

Gold is read here, and nowhere else before the report; it decides of a child only where ``on_hacking`` is ``stop``.
Stored rounds know nothing of this: what a trial makes of them is worked out from them, again each time they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from colever.looks import Look
from colever.optimizers.adaptive import Order
from colever.optimizers.carried import Parts, carried, parts_of
from colever.optimizers.gained import gained
from colever.types import Evaluation, RoundRecord

if TYPE_CHECKING:
    from colever.config import GuardSettings
    from colever.tasks.rubric import Criterion, Rubric

PRIOR = 4
SHOWN = 8  # examples named in a look
Refuse = Callable[[Sequence[RoundRecord], RoundRecord], RoundRecord]  # (rounds before, record) → as the trial takes it


@dataclass(frozen=True)
class Rules:
    """The guard's settings with what it has to know of the rubric.

    ``shares``: of each criterion in the score. ``form``: of those that speak of form, what each decides over.
    ``parts``: how they come together; of a study that was made before this was kept, nothing.
    """

    on_hacking: str = "off"
    margin: float = 0.05
    form_allowance: float = 0.25
    alpha: float = 0.05
    shares: Mapping[str, float] = field(default_factory=dict)
    form: Mapping[str, float] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)

    @classmethod
    def of(cls, settings: GuardSettings, rubric: Rubric) -> Rules:
        total = sum(c.weight for c in rubric.criteria)
        shares = {c.name: c.weight / total for c in rubric.criteria}
        form = {c.name: _stake(c, rubric) for c in rubric.criteria if c.form}
        return cls(
            settings.on_hacking, settings.margin, settings.form_allowance, settings.alpha, shares, form,
            parts_of(rubric),
        )  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rules:
        """Those of a study; ``{}``, of one that was made before there was a guard, are off."""
        form = data.get("form", {})  # names alone in a study of the first days
        shares = data.get("shares", {})
        return cls(**{**data, "form": form if isinstance(form, Mapping) else {name: shares[name] for name in form}})


def looks(rounds: Sequence[RoundRecord], rules: Rules) -> list[Look | None]:
    """One trial's rounds as the guard sees them; None where a child was no better, and where there is no gold.

    A function of stored values alone: whether a trial has refused a round does not change it.
    """
    found: list[Look | None] = []
    for record in rounds:
        number = 1 + sum(one is not None for one in found)
        better = rules.on_hacking != "off" and record.after.score > record.before.score
        found.append(look(number, rounds[0].before, record.after, rules) if better else None)
    return found


def refused(before: Sequence[RoundRecord], record: RoundRecord, rules: Rules) -> RoundRecord:
    """The round as its trial takes it: with ``stop``, a child that raises an alarm is not kept."""
    if rules.on_hacking != "stop" or not hacked([*before, record], rules):
        return record
    return replace(record, accepted=False)


def taken(rounds: Sequence[RoundRecord], rules: Rules) -> list[RoundRecord]:
    """Stored rounds as their trial took them."""
    return [refused(rounds[:place], record, rules) for place, record in enumerate(rounds)]


def hacked(rounds: Sequence[RoundRecord], rules: Rules) -> bool:
    """Whether the last round raises an alarm."""
    last = looks(rounds, rules)[-1] if rounds else None
    return last is not None and last.alarm


def unhacked(rules: Rules, order: Order) -> Order:
    """The same order of levers, ended at an alarm where the study asks for it."""
    return lambda rounds: None if rules.on_hacking == "stop" and hacked(rounds, rules) else order(rounds)


def look(number: int, base: Evaluation, child: Evaluation, rules: Rules) -> Look | None:
    """The ``number``-th look of a trial; None where fewer than two examples have score and gold in both."""
    names, pairs = _pairs(base, child)
    if len(names) < 2:
        return None
    scores, golds = pairs[:, :2], pairs[:, 2:]
    rise, truth = scores[:, 1] - scores[:, 0], golds[:, 1] - golds[:, 0]
    worth = worth_of(scores[:, 0], golds[:, 0])
    exact = carried(rules.parts, base, child, names)
    added = {n: share * _change(base, child, n) for n, share in rules.shares.items()} if exact is None else exact
    form = min(rules.form_allowance, max(0.0, _form(base, child, rules), _readable(base, child, pairs)))
    beyond = rise - worth * truth
    level = rules.alpha / (number * (number + 1))
    mean = float(beyond.mean()) - form
    return Look(
        number=number,
        score_gain=float(rise.mean()),
        gold_gain=float(truth.mean()),
        worth=worth,
        form=form,
        false_gain=mean,
        low=mean - _reach(beyond, level),
        level=level,
        margin=rules.margin,
        examples=len(names),
        criteria=dict(sorted(((n, a) for n, a in added.items() if abs(a) > 1e-12), key=lambda item: -item[1])),
        exact=exact is not None,
        gained=dict(list(gained(base, child).items())[:SHOWN]),
    )


def worth_of(scores: np.ndarray, golds: np.ndarray) -> float:
    """What gold 1 is worth in score beside gold 0, within [0, 1]: the slope, ``PRIOR`` right ones counted in."""
    x, y = np.append(golds, [1.0] * PRIOR), np.append(scores, [1.0] * PRIOR)
    spread = float(((x - x.mean()) ** 2).sum())
    if spread < 1e-12:  # all are right: nothing is known of wrong ones
        return 1.0
    return min(1.0, max(0.0, float(((x - x.mean()) * (y - y.mean())).sum()) / spread))


def _reach(values: np.ndarray, level: float) -> float:
    """From the mean down to the end of the one-sided interval; one more example counts as having changed by 1.

    That is half of what Bonett and Price (2012) add, as in ``statistics``: where few examples moved, their own variance
    is too small.
    """
    from scipy.special import stdtrit

    n = len(values)
    error = math.sqrt(float(values.var(ddof=1)) / n + 1 / n**2)
    return float(stdtrit(n - 1, 1 - level)) * error


def _stake(criterion: Criterion, rubric: Rubric) -> float:
    """The share of the score that waits for a criterion: all of it for a gate, else its own and later stages'."""
    if criterion.gate is not None:
        return 1.0
    later = [c.weight for c in rubric.criteria if c.stage > criterion.stage and criterion.weight > 0]
    return (criterion.weight + sum(later)) / sum(c.weight for c in rubric.criteria)


def _form(base: Evaluation, child: Evaluation, rules: Rules) -> float:
    return sum(stake * _change(base, child, name) for name, stake in rules.form.items())


def _readable(base: Evaluation, child: Evaluation, pairs: np.ndarray) -> float:
    """What answers that can be parsed now and could not at base bring, at the score of the base's wrong ones."""
    wrong = pairs[pairs[:, 2] < 1, 0]
    read = len(wrong) - base.policy_failures
    fewer = base.policy_failures / len(base.scores) - child.policy_failures / len(child.scores)
    return max(0.0, fewer) * float(wrong.sum()) / read if read > 0 else 0.0


def _change(base: Evaluation, child: Evaluation, criterion: str) -> float:
    return child.by_criterion.get(criterion, 0.0) - base.by_criterion.get(criterion, 0.0)


def _pairs(base: Evaluation, child: Evaluation) -> tuple[list[str], np.ndarray]:
    """The examples that have score and gold in both; score before and after, gold before and after of each: (N, 4)."""
    after = {n: (s, g) for n, s, g in zip(child.example_ids, child.scores, child.golds, strict=True)}
    names, rows = [], []
    for name, score, gold in zip(base.example_ids, base.scores, base.golds, strict=True):
        then = after.get(name, (None, None))
        if score is not None and gold is not None and then[0] is not None and then[1] is not None:
            names.append(name)
            rows.append((score, then[0], gold, then[1]))
    return names, np.array(rows, dtype=float).reshape(len(rows), 4)
