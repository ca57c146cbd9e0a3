"""Intervals over seeds and examples: against layouts worked by hand, other computations of the same, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from colever.optimizers.power import Needed, needed, resolving_power
from colever.optimizers.statistics import mean_over_seeds, paired_effect, seeds_effect, wilson
from colever.optimizers.variance import mean_squares, quantile, spread, variance_parts
from colever.reported import Estimate, Spread


def known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def crossed(rng: np.random.Generator, seeds: int, examples: int, sd: tuple[float, float, float]) -> np.ndarray:
    """Normal values with standard deviations over seeds, examples and cells."""
    of_seed, of_example, rest = rng.normal(size=seeds), rng.normal(size=examples), rng.normal(size=(seeds, examples))
    return sd[0] * of_seed[:, None] + sd[1] * of_example + sd[2] * rest


def test_two_by_two_by_hand() -> None:
    values = np.array([[1.0, 3.0], [2.0, 8.0]])
    # means 2 and 5 of seeds, 1.5 and 5.5 of examples, 3.5 in all; every residual is 1 in size
    assert mean_squares(values) == pytest.approx((9.0, 16.0, 4.0))
    assert variance_parts(values) == pytest.approx((9 / 4, 12 / 4))
    found = spread(values)
    assert (found.over_seeds, found.over_examples, found.residual) == pytest.approx((2.5**0.5, 6**0.5, 2))
    reach = t.ppf(0.975, 1)  # the same degrees of freedom on both sides
    assert quantile(9 / 4, 3.0, 2, 2) == pytest.approx(reach)


def test_mean_squares_split_the_sum_of_squares() -> None:
    values = np.random.default_rng(0).random((4, 9))
    seed, example, rest = mean_squares(values)
    assert 3 * seed + 8 * example + 24 * rest == pytest.approx(np.square(values - values.mean()).sum())


def test_the_parts_are_the_variance_of_the_mean() -> None:
    rng, sd = np.random.default_rng(1), (0.2, 0.9, 0.5)
    drawn = [crossed(rng, 3, 20, sd) for _ in range(4000)]
    told = np.array([variance_parts(values) for values in drawn]).sum(axis=1).mean()
    true = sd[0] ** 2 / 3 + sd[1] ** 2 / 20 + sd[2] ** 2 / 60
    assert told == pytest.approx(true, rel=0.05)
    assert np.var([values.mean() for values in drawn]) == pytest.approx(true, rel=0.06)


def test_components_below_0_are_0() -> None:
    found = spread(np.array([[0.0, 1.0], [1.0, 0.0]]))  # seeds and examples alike in the mean
    assert (found.over_seeds, found.over_examples) == (0, 0)
    assert found.residual == pytest.approx(1.0)
    assert variance_parts(np.array([[0.0, 1.0], [1.0, 0.0]])) == (0, 0)


def test_the_quantile_goes_from_examples_to_seeds() -> None:
    assert quantile(0.0, 1.0, 3, 128) == pytest.approx(t.ppf(0.975, 127))
    assert quantile(1.0, 0.0, 3, 128) == pytest.approx(t.ppf(0.975, 2))
    assert quantile(0.5, 0.5, 2, 128) == pytest.approx((t.ppf(0.975, 1) + t.ppf(0.975, 127)) / 2)  # Cochran's rule
    reach = [float(quantile(a, 1 - a, 3, 128)) for a in np.linspace(0, 1, 11)]
    assert reach == sorted(reach)
    assert quantile(0.0, 1.0, 1, 128) == pytest.approx(t.ppf(0.975, 127))


def test_an_untrained_arm_has_no_variance_over_seeds() -> None:
    values = np.random.default_rng(2).integers(0, 2, 60).astype(float).tolist()
    found = known(mean_over_seeds([values] * 3))
    assert found.over == "seeds and examples"
    assert found.spread is not None
    assert (found.spread.over_seeds, found.spread.residual) == pytest.approx((0, 0), abs=1e-9)
    plain = wilson(int(sum(values)), 60)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.006)  # t with 59, not z


def test_a_mean_over_seeds_stays_within_0_and_1() -> None:
    for rows in ([[1.0] * 30] * 3, [[1.0] * 30, [1.0] * 30, [0.0] + [1.0] * 29], [[0.0] * 30, [1.0] * 30]):
        found = known(mean_over_seeds(rows))
        assert 0 <= found.low < found.value <= found.high <= 1
    assert known(mean_over_seeds([[1.0] * 30] * 3)).low < 0.9
    assert mean_over_seeds([[None], [1.0]]) is None


def test_an_example_without_a_value_anywhere_is_left_out() -> None:
    effect = known(seeds_effect([(1, [[1.0, None, 1.0], [1.0, 1.0, 1.0]]), (-1, [[0.0] * 3, [0.0, 0.0, None]])]))
    assert effect.spread is not None
    assert effect.spread.examples == 1
    assert (effect.value, effect.low, effect.high, effect.resolved) == (1.0, -1.0, 1.0, False)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    base = rng.integers(0, 2, 200).astype(float)
    alike = [np.where(rng.random(200) < 0.3, 1.0, base).tolist() for _ in range(3)]
    unlike = [np.where(rng.random(200) < share, 1.0, base).tolist() for share in (0.0, 0.3, 0.6)]
    arms = [base.tolist()] * 3
    narrow, wide = (known(seeds_effect([(1, runs), (-1, arms)])) for runs in (alike, unlike))
    one = known(paired_effect([(1, unlike[1]), (-1, arms[1])]))
    assert narrow.resolved
    assert one.resolved
    assert not wide.resolved
    assert wide.high - wide.low > 3 * (one.high - one.low)


@pytest.mark.parametrize("seed_sd", [0.0, 0.2, 0.6])
def test_the_interval_over_seeds_covers(seed_sd: float) -> None:
    rng, studies = np.random.default_rng(5), 1000
    hits = 0
    for _ in range(studies):
        difficulty = 1.5 * rng.normal(size=100)
        base = (difficulty + rng.normal(size=100) > 0).astype(float)
        trained = (difficulty + crossed(rng, 3, 100, (seed_sd, 0.5, 0.8)) > 0).astype(float)
        effect = known(seeds_effect([(1, trained.tolist()), (-1, [base.tolist()] * 3)]))
        hits += effect.low <= 0 <= effect.high  # both are right on half of the examples
    assert 0.93 <= hits / studies <= 0.98


def test_needed_examples_give_the_power_they_promise() -> None:
    effect = Estimate(0.03, -0.02, 0.08, False, spread=Spread(1, 200, over_examples=0.5))
    found = needed(effect)
    assert found.seeds is None
    assert found.examples == pytest.approx((1.96 + 0.8416) ** 2 * 0.5**2 / 0.03**2 - 200, rel=0.01)


def test_needed_counts_meet_the_power_when_they_are_run() -> None:
    spread_ = Spread(3, 100, over_examples=0.5, over_seeds=0.01, residual=0.3)
    found = needed(Estimate(0.05, -0.1, 0.2, False, "seeds and examples", spread_))
    assert found.examples is not None
    rng, resolved, studies = np.random.default_rng(6), 0, 600
    total = 100 + found.examples
    for _ in range(studies):
        values = 0.05 + crossed(rng, 3, total, (0.01, 0.5, 0.3))
        parts = variance_parts(values)
        resolved += bool(values.mean() > quantile(*parts, 3, total) * sum(parts) ** 0.5)
    assert 0.75 <= resolved / studies <= 0.86
    before = resolving_power(0.05, spread_, 3, total - 1)
    assert before < 0.8 <= resolving_power(0.05, spread_, 3, total)


def test_no_number_of_examples_makes_up_for_seeds_nor_seeds_for_examples() -> None:
    by_seeds = Spread(3, 500, over_examples=0.3, over_seeds=0.1, residual=0.2)
    found = needed(Estimate(0.06, -0.1, 0.3, False, "seeds and examples", by_seeds))
    assert found.examples is None
    assert found.seeds is not None
    assert 10 <= found.seeds <= 40
    by_examples = Spread(3, 50, over_examples=0.8, over_seeds=0.0, residual=0.1)
    found = needed(Estimate(0.1, -0.2, 0.4, False, "seeds and examples", by_examples))
    assert found.seeds is None
    assert found.examples is not None


def test_needed_of_what_is_resolved_nothing_and_unknown() -> None:
    assert needed(Estimate(0.1, 0.05, 0.2, True, spread=Spread(1, 50, 0.1))) == Needed(0, 0)
    assert needed(Estimate(0.0, -0.1, 0.1, False, spread=Spread(1, 50, 0.4))) == Needed(None, None)
    assert needed(Estimate(0.5, -1, 1, False, spread=Spread(1, 1))) == Needed(None, None)
    with pytest.raises(ValueError, match="spread"):
        needed(Estimate(0.1, -0.1, 0.3, False))
