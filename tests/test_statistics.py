"""Intervals against known values and coverage; effects against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from colever.optimizers.statistics import (
    Runs,
    lever_effects,
    lever_effects_over_seeds,
    mean_estimate,
    paired_effect,
    seeds_effect,
    wilson,
)
from colever.reported import Estimate, Spread


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def bounds(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_wilson_equals_the_published_example() -> None:
    estimate = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(10, 10).low < 1.0 == wilson(10, 10).high
    assert wilson(0, 10).low == 0.0 < wilson(0, 10).high


def test_zeros_and_ones_get_wilson_and_shares_what_their_variance_says() -> None:
    assert known(mean_estimate([1.0, 0.0, None, 1.0])).low == pytest.approx(wilson(2, 3).low)
    assert known(mean_estimate([1.0, 0.0, None, 1.0])).high == pytest.approx(wilson(2, 3).high)
    shares = known(mean_estimate([0.2, 0.4, 0.6, 0.8] * 50))
    normal = 1.96 * np.std([0.2, 0.4, 0.6, 0.8]) / np.sqrt(200)
    assert (shares.high - shares.low) / 2 == pytest.approx(normal, rel=0.05)
    assert mean_estimate([None, None]) is None


def test_a_mean_at_its_end_keeps_its_room() -> None:
    assert known(mean_estimate([0.5] * 40)).low < 0.5 < known(mean_estimate([0.5] * 40)).high
    one = known(mean_estimate([0.4]))
    assert (one.low, one.high) != (0.4, 0.4)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        mean_estimate([0.5, 1.5])


def test_the_paired_interval_covers() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        difficulty, noise = rng.normal(size=(1, 100)), rng.normal(size=(2, 100))
        one, other = (difficulty + noise + np.array([[0.0], [0.5]]) > 0).astype(float)
        effect = known(paired_effect([(1, list(other)), (-1, list(one))]))
        hits += effect.low <= norm.cdf(0.5 / 2**0.5) - 0.5 <= effect.high
    assert 930 <= hits <= 975


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
    effect = known(paired_effect([(1, [1.0] * 30), (-1, [0.0] * 30)]))
    assert (effect.value, effect.high) == (1.0, 1.0)
    assert effect.low == pytest.approx(1 - t.ppf(0.975, 29) / 30)
    few = known(paired_effect([(1, [0.6, 0.6]), (-1, [0.5, 0.5])]))
    assert not few.resolved
    alike = known(paired_effect([(1, [1.0, 0.0] * 20), (-1, [1.0, 0.0] * 20)]))
    assert (alike.value, alike.resolved) == (0, False)
    assert alike.low == pytest.approx(-t.ppf(0.975, 39) / 40)


def test_one_arm_in_two_places_is_no_effect_for_certain() -> None:
    base, weights = [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    effects = lever_effects({"base": base, "prompt": base, "weights": weights, "both": weights})
    for name in ("prompt", "interaction"):
        assert (effects[name].value, effects[name].low, effects[name].high) == (0, 0, 0)
        assert not effects[name].resolved
    alone = known(paired_effect([(1, weights), (-1, base)]))
    assert effects["weights"] == alone


def test_pairs_with_a_missing_value_are_left_out() -> None:
    effect = paired_effect([(1, [1.0, None, 1.0]), (-1, [0.0, 0.0, None])])
    assert effect is not None
    assert effect.value == 1.0
    assert paired_effect([(1, [None]), (-1, [1.0])]) is None


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_shares_add_up_swap_and_vanish(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    for _ in range(50):
        rows = (rng.random((4, seeds, 40)) < rng.random((4, 1, 1))).astype(float)
        arms: dict[str, Runs] = {name: rows[i].tolist() for i, name in enumerate(("base", "prompt", "weights", "both"))}
        arms["base"] = [arms["base"][0]] * seeds  # it is not trained
        v = {name: float(np.mean(runs)) for name, runs in arms.items()}
        effects = lever_effects_over_seeds(arms)
        assert effects["prompt"].value + effects["weights"].value == pytest.approx(v["both"] - v["base"])
        assert effects["prompt"].value == pytest.approx(0.5 * (v["prompt"] - v["base"] + v["both"] - v["weights"]))
        assert effects["interaction"].value == pytest.approx(v["both"] - v["prompt"] - v["weights"] + v["base"])
        swapped = lever_effects_over_seeds(arms | {"prompt": arms["weights"], "weights": arms["prompt"]})
        for name, other in (("prompt", "weights"), ("weights", "prompt"), ("interaction", "interaction")):
            assert bounds(swapped[name]) == pytest.approx(bounds(effects[other]))
        null = lever_effects_over_seeds(arms | {"prompt": arms["base"], "both": arms["weights"]})
        gain = known(seeds_effect([(1, arms["weights"]), (-1, arms["base"])]))
        assert bounds(null["prompt"]) == bounds(null["interaction"]) == (0, 0, 0)
        assert bounds(null["weights"]) == pytest.approx(bounds(gain))


def test_one_run_is_the_case_of_one_seed() -> None:
    rows = np.random.default_rng(3).integers(0, 2, (4, 30)).astype(float).tolist()
    arms = dict(zip(("base", "prompt", "weights", "both"), rows, strict=True))
    assert lever_effects(arms) == lever_effects_over_seeds({name: [values] for name, values in arms.items()})
    assert {e.over for e in lever_effects(arms).values()} == {"examples"}
    assert known(paired_effect([(1, rows[0]), (-1, rows[1])])).spread == Spread(
        1, 30, over_examples=pytest.approx(np.std(np.subtract(rows[0], rows[1]), ddof=1))
    )


def test_runs_of_unlike_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] training seeds"):
        seeds_effect([(1, [[1.0], [0.0]]), (-1, [[1.0]])])
    with pytest.raises(ValueError, match=r"\[1, 2\] examples"):
        paired_effect([(1, [1.0, 0.0]), (-1, [1.0])])
