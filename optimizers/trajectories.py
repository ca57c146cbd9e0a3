"""Rollouts of whole programs → rows to train on: groups, advantages, step weights.

Knows rollouts and scores; knows nothing of models, tensors or losses.

A *row* is one step (one predictor call) with exactly the token ids that were sampled. Its reward is its trajectory's
``score.total``. A group is the rows of one example at one predictor and occurrence (``predictor``), or all
rows of one example, every trajectory counted once (``trajectory``). An advantage is the reward less its group's mean,
divided by the group's standard deviation (``group``), by that of all rewards of the batch (``batch``), or by nothing
(``none``, as in Dr. GRPO, arXiv:2503.20783); standard deviations have n − 1 below and 1e-4 added, as in TRL.

Departures from GRPO (arXiv:2402.03300):
- Groups may differ in size: a program may skip a predictor or call it in a loop. Nothing is repeated to fill a group.
- A row's weight is 1 / (steps of its trajectory), scaled so that the batch's rows have mean weight 1: a trajectory
  counts the same however many calls it makes, and with equally many calls each every weight is 1. Where numbers of
  calls differ this turns the gradient away from the policy gradient (docs/weight-lever.md has how far);
  ``weighted=False`` leaves all weights at 1.
- A group without two different rewards has no gradient and is left out of the computation. Its rows and tokens still
  count in the loss's divisors, so that the policy gradient is the one that TRL computes with them in. A KL penalty,
  which TRL also takes of them, is left out with them.
- With ``signal="best"`` a group's best rollouts alone are rows, with advantage 1 whatever the scaling: the loss is then
  the mean negative log-likelihood of their tokens (rejection sampling, as RAFT has it: arXiv:2304.06767).
- With ``signal="imitate"``, for completions that were sampled behind other prompts, the rows of a constant group count
  as its best too where none of the example's rollouts has a higher reward, and theirs is not 0: nothing says which
  is better, but all are worth imitating.
- Policy failures are rows like any other, with the lowest score; infrastructure failures make no row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from colever.errors import LeverError
from colever.types import Rollout, Step

Grouping = Literal["predictor", "trajectory"]
Scaling = Literal["group", "batch", "none"]
Signal = Literal["advantage", "best", "imitate"]
Prompts = Literal["sampled", "short"]
GroupKey = tuple[str, str, int]  # example id, predictor, occurrence ("" and 0 where trajectories are grouped)

SCALE_FLOOR = 1e-4
PADDING = 0.1  # of a part's computed tokens


@dataclass(frozen=True)
class Row:
    """One step to train on. ``advantage`` does not hold ``weight``; the loss takes their product."""

    group: GroupKey
    sample: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # the sampler's
    reward: float
    advantage: float
    weight: float
    predictor: str = ""


@dataclass(frozen=True)
class TrainingBatch:
    """The rows of one update, and what was left out of it.

    ``total_rows`` and ``total_tokens`` (completion tokens) are the loss's divisors. They count the constant groups'
    rows too, save where the best rollouts alone are trained on. ``reward`` and such statistics are of every rollout
    that has a score.
    """

    rows: tuple[Row, ...]
    total_rows: int
    total_tokens: int
    groups: int
    constant_groups: int
    rollouts: int
    infrastructure_failures: int
    policy_failures: int
    reward: float  # mean over scored rollouts
    by_criterion: Mapping[str, float]
    completion_tokens: Mapping[str, float]  # mean length by predictor
    drifted_calls: int = 0  # whose prompt has an earlier answer in other tokens than it was sampled in

    @property
    def constant_share(self) -> float:
        return self.constant_groups / self.groups if self.groups else 1.0


def training_batch(
    rollouts: Sequence[Rollout],
    *,
    version: str,
    grouping: Grouping = "predictor",
    scaling: Scaling = "group",
    signal: Signal = "advantage",
    weighted: bool = True,
    prompts: Prompts = "sampled",
) -> TrainingBatch:
    """The rows of one update from its rollouts.

    ``prompts`` says behind which prompt a completion is trained: the one that it was sampled from, or its step's
    ``short_ids``. Raises LeverError for a rollout of weights other than ``version``, or for a step without its token
    ids.
    """
    scored = [r for r in rollouts if r.score is not None]
    check_fresh(scored, version)
    kept = [(r, [s for s in r.steps if s.completion.completion_ids]) for r in scored]
    groups: dict[GroupKey, list[tuple[Rollout, Step]]] = {}
    for rollout, steps in kept:
        for step in steps:
            groups.setdefault(_group_key(rollout, step, grouping), []).append((rollout, step))
    weights = step_weights([len(steps) for _, steps in kept]) if weighted else [1.0] * len(kept)
    weight_of = {id(rollout): weight for (rollout, _), weight in zip(kept, weights, strict=True)}
    everything = [_total(r) for r, steps in kept if steps]
    best = _best(scored)
    rows: list[Row] = []
    constant = 0
    for key, members in groups.items():
        rewards = {id(r): _total(r) for r, _ in members}  # every trajectory once
        worthy = signal == "imitate" and max(rewards.values()) == best[key[0]] > 0
        if is_constant(rewards.values()) and not worthy:
            constant += 1
            continue
        mean, highest = _mean(list(rewards.values())), max(rewards.values())
        scale = _scale(list(rewards.values()), everything, scaling)
        for rollout, step in members:
            reward = rewards[id(rollout)]
            if signal == "advantage":
                rows.append(_row(key, rollout, step, (reward - mean) / scale, weight_of[id(rollout)], prompts))
            elif reward == highest:
                rows.append(_row(key, rollout, step, 1.0, weight_of[id(rollout)], prompts))
    counted = rows if signal != "advantage" else [s.completion for _, steps in kept for s in steps]
    return TrainingBatch(
        rows=tuple(rows),
        total_rows=len(counted),
        total_tokens=sum(len(c.completion_ids) for c in counted),
        groups=len(groups),
        constant_groups=constant,
        rollouts=len(rollouts),
        infrastructure_failures=len(rollouts) - len(scored),
        policy_failures=sum(r.failure == "policy" for r in scored),
        reward=_mean([_total(r) for r in scored]),
        by_criterion=_by_criterion(scored),
        completion_tokens=_lengths(scored),
        drifted_calls=sum(step.drifted for _, steps in kept for step in steps),
    )


def _row(key: GroupKey, rollout: Rollout, step: Step, advantage: float, weight: float, prompts: Prompts) -> Row:
    c = step.completion
    prompt = c.prompt_ids if prompts == "sampled" else step.short_ids
    if not prompt:
        raise LeverError(
            f"a call of predictor {step.predictor!r} carries no token ids of its short prompt: weights.fold needs "
            "every prompt to be made by the adapter of the run (a program may not set one of its own)"
        )
    ids = prompt, c.completion_ids, c.logprobs
    return Row(key, rollout.sample, *ids, _total(rollout), advantage, weight, step.predictor)


def check_fresh(rollouts: Iterable[Rollout], version: str) -> None:
    """Raises LeverError for a rollout of other weights, without its token ids, or with broken log-probabilities."""
    for r in rollouts:
        stale = {s.completion.version for s in r.steps} | ({r.version} if r.version else set())
        if stale - {version}:
            raise LeverError(
                f"rollout {r.sample} of example {r.example_id!r} was sampled from weights {', '.join(sorted(stale))}, "
                f"the weights to train are {version}: it is refused"
            )
        for s in r.steps:
            if not s.completion.prompt_ids or len(s.completion.logprobs) != len(s.completion.completion_ids):
                raise LeverError(
                    f"a call of predictor {s.predictor!r} carries no token ids: the weight lever needs an engine that "
                    f"returns them (the in-process one does)"
                )
            if not all(map(math.isfinite, s.completion.logprobs)):
                raise LeverError(
                    "the sampler's log-probabilities are not finite: the weights are broken. Try a lower learning_rate "
                    "or max_grad_norm"
                )


def step_weights(steps: Sequence[int]) -> list[float]:
    """The weight of each trajectory's rows, from its number of steps: 1 / n, scaled to mean 1 over all rows."""
    rows, trajectories = sum(steps), sum(n > 0 for n in steps)
    return [rows / (trajectories * n) if n else 0.0 for n in steps]


def is_constant(rewards: Iterable[float]) -> bool:
    """Whether a group has no two different rewards: it holds no signal."""
    values = list(rewards)
    return len(values) < 2 or max(values) - min(values) < 1e-9


def parts(rows: Sequence[Row], max_tokens: int, *, padded: bool = False, apart: bool = False) -> Iterator[list[Row]]:
    """Rows in parts of at most ``max_tokens`` computed tokens (or one row), of about equal size.

    A part computes its own prefixes, so one that opens with a long prompt may grow to twice that prompt: however long
    an agent's history is, the split makes it cost three times as much at most. ``padded``: rows are padded and share
    nothing; a part is ended before padding is a tenth of it. ``apart``: no part holds rows of two predictors.
    """
    if apart:
        for predictor in sorted({r.predictor for r in rows}):
            yield from parts([r for r in rows if r.predictor == predictor], max_tokens, padded=padded)
        return
    if padded:
        yield from _padded_parts(rows, max_tokens)
        return
    ordered = sorted(rows, key=lambda r: (r.prompt_ids, len(r.completion_ids)))  # those that share a prefix together
    fresh = [_fresh(before, row) for before, row in zip([None, *ordered], ordered, strict=False)]
    whole = sum(len(r.completion_ids) for r in rows) + sum(fresh)
    target = whole / max(1, math.ceil(whole / max_tokens))
    part: list[Row] = []
    size = opening = 0
    for row, new in zip(ordered, fresh, strict=True):
        cost = len(row.completion_ids) + new
        limit = max(max_tokens, 2 * opening)
        balanced = limit == max_tokens and new and size + cost / 2 > target
        if part and (size + cost > limit or balanced):
            yield part
            part = []
        if not part:
            size, opening = 0, len(row.prompt_ids)
            cost = len(row.completion_ids) + _fresh(None, row)
        part.append(row)
        size += cost
    if part:
        yield part


def _padded_parts(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    prompt = completion = real = 0
    for row in sorted(rows, key=lambda r: (len(r.prompt_ids), len(r.completion_ids), r.prompt_ids)):
        lengths = len(row.prompt_ids), len(row.completion_ids)
        wider = max(prompt, lengths[0]), max(completion, lengths[1])
        computed = (len(part) + 1) * sum(wider)
        if part and (computed > max_tokens or computed - real - sum(lengths) > PADDING * computed):
            yield part
            part, real, wider = [], 0, lengths
        part.append(row)
        prompt, completion = wider
        real += sum(lengths)
    if part:
        yield part


def _fresh(before: Row | None, row: Row) -> int:
    """How many of a row's prompt tokens, its last one left out, are not those of the row before."""
    if before is None:
        return len(row.prompt_ids) - 1
    if before.prompt_ids == row.prompt_ids:
        return 0
    pairs = zip(before.prompt_ids[:-1], row.prompt_ids[:-1], strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before.prompt_ids), len(row.prompt_ids)) - 1)
    return len(row.prompt_ids) - 1 - same


def _group_key(rollout: Rollout, step: Step, grouping: Grouping) -> GroupKey:
    if grouping == "trajectory":
        return rollout.example_id, "", 0
    return rollout.example_id, step.predictor, step.occurrence


def _scale(group: Sequence[float], everything: Sequence[float], scaling: Scaling) -> float:
    if scaling == "none":
        return 1.0
    return _deviation(group if scaling == "group" else everything) + SCALE_FLOOR


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def _best(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """The highest reward of each example."""
    best: dict[str, float] = {}
    for rollout in rollouts:
        best[rollout.example_id] = max(_total(rollout), best.get(rollout.example_id, 0.0))
    return best


def _total(rollout: Rollout) -> float:
    assert rollout.score is not None
    return rollout.score.total


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _by_criterion(rollouts: Sequence[Rollout]) -> dict[str, float]:
    scores = [r.score for r in rollouts if r.score is not None]
    names = list(scores[0].by_criterion) if scores else []
    return {name: _mean([s.by_criterion[name] for s in scores]) for name in names}


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    lengths: dict[str, list[int]] = {}
    for rollout in rollouts:
        for step in rollout.steps:
            lengths.setdefault(step.predictor, []).append(len(step.completion.completion_ids))
    return {name: _mean(values) for name, values in sorted(lengths.items())}
