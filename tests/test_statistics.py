"""Intervals against known values and coverage; effects against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from colever.optimizers.statistics import lever_effects, mean_estimate, paired_effect, wilson


def test_wilson_equals_the_published_example() -> None:
    estimate = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(10, 10).low < 1.0 == wilson(10, 10).high
    assert wilson(0, 10).low == 0.0 < wilson(0, 10).high


def test_zeros_and_ones_get_wilson_and_shares_the_bootstrap() -> None:
    assert mean_estimate([1.0, 0.0, None, 1.0]) == wilson(2, 3)
    shares = mean_estimate([0.2, 0.4, 0.6, 0.8] * 50)
    assert shares is not None
    normal = 1.96 * np.std([0.2, 0.4, 0.6, 0.8]) / np.sqrt(200)
    assert (shares.high - shares.low) / 2 == pytest.approx(normal, rel=0.05)
    assert mean_estimate([None, None]) is None


def test_the_bootstrap_covers() -> None:
    rng, hits = np.random.default_rng(0), 0
    for trial in range(60):
        one, other = rng.random(80), rng.random(80) + 0.1
        effect = paired_effect([(1, list(other)), (-1, list(one))], seed=trial)
        assert effect is not None
        hits += effect.low <= 0.1 <= effect.high
    assert hits >= 51


def test_an_interval_that_touches_0_is_unresolved() -> None:
    none = paired_effect([(1, [0.0, 1.0] * 40), (-1, [1.0, 0.0] * 40)])
    same = paired_effect([(1, [1.0] * 40), (-1, [1.0] * 40)])
    clear = paired_effect([(1, [1.0] * 40), (-1, [0.0] * 20 + [1.0] * 20)])
    assert none is not None
    assert same is not None
    assert clear is not None
    assert (none.resolved, same.resolved, clear.resolved) == (False, False, True)
    assert clear.value == 0.5


def test_equal_differences_leave_room_for_what_was_not_drawn() -> None:
    effect = paired_effect([(1, [1.0] * 30), (-1, [0.0] * 30)])
    assert effect is not None
    assert (effect.value, effect.low, effect.high) == (1.0, pytest.approx(0.8), 1.0)
    few = paired_effect([(1, [0.6, 0.6]), (-1, [0.5, 0.5])])
    assert few is not None
    assert not few.resolved
    same = paired_effect([(1, [0.6, 0.2]), (-1, [0.6, 0.2])])
    assert same is not None
    assert (same.low, same.high, same.resolved) == (0, 0, False)


def test_pairs_with_a_missing_value_are_left_out() -> None:
    effect = paired_effect([(1, [1.0, None, 1.0]), (-1, [0.0, 0.0, None])])
    assert effect is not None
    assert effect.value == 1.0
    assert paired_effect([(1, [None]), (-1, [1.0])]) is None


def test_shares_add_up_to_the_gain_of_both() -> None:
    rng = np.random.default_rng(1)
    arms = {
        name: list(rng.random(64) + shift)
        for name, shift in zip(("base", "prompt", "weights", "both"), (0, 0.1, 0.3, 0.9), strict=True)
    }
    v = {name: float(np.mean(values)) for name, values in arms.items()}
    effects = lever_effects(arms)
    assert effects["prompt"].value + effects["weights"].value == pytest.approx(v["both"] - v["base"])
    assert effects["interaction"].value == pytest.approx(v["both"] - v["prompt"] - v["weights"] + v["base"])
    assert effects["prompt"].value == pytest.approx(0.5 * (v["prompt"] - v["base"] + v["both"] - v["weights"]))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(2).random(50))
    assert mean_estimate(values, seed=3) == mean_estimate(values, seed=3)
