"""Rollouts → groups, advantages and weights."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from colever.errors import LeverError
from colever.optimizers.trajectories import step_weights, training_batch
from colever.types import Completion, Rollout, Score, Step


def completion(ids=(5, 6), version="v1") -> Completion:
    return Completion("x", (1, 2, 3), tuple(ids), (-0.5,) * len(ids), "stop", version)


def rollout(example, sample, total, steps=(("solve", 0),), failure=None, version="v1") -> Rollout:
    score = None if total is None else Score(total, {"right": total})
    calls = tuple(Step(name, n, completion(version=version)) for name, n in steps)
    return Rollout(example, sample, calls, score, {}, failure, "", version)


def by_sample(batch, group):
    return {r.sample: r for r in batch.rows if r.group == group}


def test_advantage_is_reward_less_group_mean_over_deviation():
    totals = [1.0, 0.0, 0.5, 0.5]
    batch = training_batch([rollout("a", i, t) for i, t in enumerate(totals)], version="v1")
    expected = [(t - 0.5) / (statistics.stdev(totals) + 1e-4) for t in totals]
    assert [r.advantage for r in batch.rows] == pytest.approx(expected)
    assert [r.weight for r in batch.rows] == [1.0] * 4


def test_every_group_shares_one_example():
    rollouts = [rollout(e, i, float(i == k)) for k, e in enumerate("abc") for i in range(3)]
    batch = training_batch(rollouts, version="v1")
    assert {r.group[0] for r in batch.rows} == set("abc")
    for e in "abc":
        assert sum(r.advantage for r in batch.rows if r.group[0] == e) == pytest.approx(0)


def with_short(made: Rollout, *ids: int) -> Rollout:
    return replace(made, steps=tuple(replace(s, short_ids=ids) for s in made.steps))


def test_a_completion_may_be_trained_behind_the_short_prompt():
    rollouts = [with_short(rollout("a", i, t), 7, 8) for i, t in enumerate([1.0, 0.0])]
    sampled = training_batch(rollouts, version="v1")
    short = training_batch(rollouts, version="v1", prompts="short")
    assert [r.prompt_ids for r in sampled.rows] == [(1, 2, 3)] * 2
    assert [r.prompt_ids for r in short.rows] == [(7, 8)] * 2
    assert [replace(r, prompt_ids=()) for r in short.rows] == [replace(r, prompt_ids=()) for r in sampled.rows]
    with pytest.raises(LeverError, match="short prompt"):
        training_batch([rollout("a", 0, 1.0), rollout("a", 1, 0.0)], version="v1", prompts="short")


def test_imitation_takes_groups_that_are_all_right_and_none_that_is_all_wrong():
    totals = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 0.0], "d": [0.5, 0.5]}
    rollouts = [rollout(e, i, t) for e, found in totals.items() for i, t in enumerate(found)]
    best = training_batch(rollouts, version="v1", signal="best")
    imitated = training_batch(rollouts, version="v1", signal="imitate")
    assert [(r.group[0], r.sample) for r in best.rows] == [("a", 0)]
    assert [(r.group[0], r.sample) for r in imitated.rows] == [("a", 0), ("b", 0), ("b", 1), ("d", 0), ("d", 1)]
    assert (best.constant_groups, imitated.constant_groups) == (3, 1)
    assert (imitated.total_rows, imitated.total_tokens) == (5, 10)


def test_imitation_leaves_out_a_call_that_only_a_worse_rollout_made():
    twice = (("solve", 0), ("solve", 1))
    rollouts = [rollout("a", 0, 1.0), rollout("a", 1, 0.5, twice)]
    batch = training_batch(rollouts, version="v1", signal="imitate")
    assert [(r.group, r.sample) for r in batch.rows] == [(("a", "solve", 0), 0)]


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_scaling(scaling):
    rollouts = [rollout("a", 0, 1.0), rollout("a", 1, 0.0), rollout("b", 0, 0.5), rollout("b", 1, 0.4)]
    batch = training_batch(rollouts, version="v1", scaling=scaling)
    scale = {"group": statistics.stdev([1.0, 0.0]), "batch": statistics.stdev([1.0, 0.0, 0.5, 0.4]), "none": 1 - 1e-4}
    assert batch.rows[0].advantage == pytest.approx(0.5 / (scale[scaling] + 1e-4))


def test_constant_groups_train_nothing_and_are_counted():
    rollouts = [rollout("a", 0, 1.0), rollout("a", 1, 1.0), rollout("b", 0, 1.0), rollout("b", 1, 0.0)]
    batch = training_batch(rollouts, version="v1")
    assert {r.group[0] for r in batch.rows} == {"b"}
    assert (batch.groups, batch.constant_groups, batch.constant_share) == (2, 1, 0.5)
    assert (batch.total_rows, batch.total_tokens) == (4, 8)  # the divisors of TRL's loss


def test_groups_by_predictor_and_occurrence_may_be_ragged():
    loop = [("search", 0), ("search", 1), ("answer", 0)]
    rollouts = [rollout("a", 0, 1.0, loop), rollout("a", 1, 0.0, loop[::2]), rollout("a", 2, 0.5, loop[:1])]
    batch = training_batch(rollouts, version="v1", scaling="none")
    assert {s: r.advantage for s, r in by_sample(batch, ("a", "search", 0)).items()} == {0: 0.5, 1: -0.5, 2: 0.0}
    assert {s: r.advantage for s, r in by_sample(batch, ("a", "answer", 0)).items()} == {0: 0.5, 1: -0.5}
    assert not by_sample(batch, ("a", "search", 1))  # one member: nothing to compare with


def test_trajectory_grouping_counts_each_trajectory_once():
    rollouts = [rollout("a", 0, 1.0, [("p", 0)] * 3), rollout("a", 1, 0.0, [("p", 0)])]
    batch = training_batch(rollouts, version="v1", grouping="trajectory", scaling="none")
    assert [r.advantage for r in batch.rows] == [0.5, 0.5, 0.5, -0.5]


def test_a_long_trajectory_counts_no_more():
    weights = step_weights([3, 1])
    assert 3 * weights[0] == pytest.approx(weights[1])
    assert 3 * weights[0] + weights[1] == pytest.approx(4)  # mean 1 over rows
    assert step_weights([2, 2, 0]) == [1.0, 1.0, 0.0]


def test_policy_failures_are_trained_on_and_infrastructure_failures_are_not():
    rollouts = [
        rollout("a", 0, 1.0),
        rollout("a", 1, 0.0, failure="policy"),
        rollout("a", 2, None, failure="infrastructure"),
    ]
    batch = training_batch(rollouts, version="v1", scaling="none")
    assert {r.sample: r.advantage for r in batch.rows} == {0: 0.5, 1: -0.5}
    assert (batch.policy_failures, batch.infrastructure_failures) == (1, 1)


def test_the_best_rollouts_alone_are_rows_with_equal_weight():
    batch = training_batch(
        [rollout("a", i, reward) for i, reward in enumerate([0.2, 0.9, 0.9, 0.0])], version="v1", signal="best"
    )
    assert [(r.sample, r.advantage) for r in batch.rows] == [(1, 1.0), (2, 1.0)]
    assert batch.total_rows == 2
    assert batch.total_tokens == sum(len(r.completion_ids) for r in batch.rows)
    assert batch.reward == pytest.approx(0.5)


def test_stale_rollouts_are_refused():
    with pytest.raises(LeverError, match="sampled from weights v0"):
        training_batch([rollout("a", 0, 1.0, version="v0")], version="v1")


def test_rollouts_without_tokens_are_refused():
    bare = Rollout(
        "a", 0, (Step("p", 0, Completion("x", (), (5,), (), "stop", "v1")),), Score(1.0, {}), {}, version="v1"
    )
    with pytest.raises(LeverError, match="no token ids"):
        training_batch([bare], version="v1")


def test_rows_carry_the_sampled_ids():
    batch = training_batch([rollout("a", 0, 1.0), rollout("a", 1, 0.0)], version="v1")
    assert batch.rows[0].prompt_ids == (1, 2, 3)
    assert batch.rows[0].completion_ids == (5, 6)


def test_no_rollouts_make_an_empty_batch():
    batch = training_batch([], version="v1")
    assert batch.rows == ()
    assert batch.constant_share == 1.0


def test_batch_scaling_counts_each_rollout_once():
    """However many calls it makes: the deviation is that of the rewards, as in TRL, where a rollout is one row."""
    rollouts = [rollout("a", 0, 0.0, [("p", 0)] * 3), rollout("a", 1, 1.0, [("p", 0)])]
    batch = training_batch(rollouts, version="v1", grouping="trajectory", scaling="batch")
    expected = 0.5 / (statistics.stdev([0.0, 1.0]) + 1e-4)
    assert [abs(r.advantage) for r in batch.rows] == pytest.approx([expected] * 4)


def test_step_weights_can_be_left_out():
    rollouts = [rollout("a", 0, 0.0, [("p", 0), ("q", 0)]), rollout("a", 1, 1.0, [("p", 0)])]
    for weighted, weights in ((True, {0.75, 1.5}), (False, {1.0})):
        batch = training_batch(rollouts, version="v1", weighted=weighted)
        assert {r.weight for r in batch.rows} == weights
