"""GRPO's estimate against the exact policy gradient, on a program whose trajectories can be enumerated.

The chain is the real one: the engine's generator draws the tokens, ``training_batch`` makes rows and advantages, and
TRL's loss is shown to have the gradient Σ advantage · weight · ∇logp / rows, which the average over updates uses.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from bandit import Bandit, E, K, V, flat, place, tiny_model, tokenizer

from colever.optimizers.grpo import ProgramTrainer
from colever.optimizers.grpo_settings import GrpoSettings
from colever.optimizers.trajectories import TrainingBatch, training_batch
from colever.types import Rollout

G = 8
HARD = 11  # another table of rewards, in which branches matter more


@pytest.fixture(scope="module")
def fixed() -> Bandit:
    """Two calls in every rollout."""
    return Bandit(tiny_model())


@pytest.fixture(scope="module")
def branching() -> Bandit:
    """One call or two."""
    return Bandit(tiny_model(), stops=True, table=HARD)


@pytest.fixture(scope="module")
def fixed_rollouts(fixed: Bandit) -> list[list[Rollout]]:
    return fixed.rollouts(1800, G)


@pytest.fixture(scope="module")
def branching_rollouts(branching: Bandit) -> list[list[Rollout]]:
    return branching.rollouts(1200, G)


def coefficients(batch: TrainingBatch, weighted: bool = True) -> torch.Tensor:
    """(E · K · V,): what multiplies each ∇logp in the batch's ascent direction, per row of the batch."""
    table = torch.zeros(E, K, V, dtype=torch.float64)
    for row in batch.rows:
        table[place(row)] += row.advantage * (row.weight if weighted else 1.0)
    return table.flatten() / batch.total_rows


def estimates(
    rollouts: list[list[Rollout]], grouping: str = "predictor", scaling: str = "none", weighted: bool = True
) -> torch.Tensor:
    """(updates, E · K · V): each update's estimate of the gradient, less the factor (1 − 1/G) that a mean of G costs.

    The loss is a mean over rows, the objective one over rollouts: hence rows / rollouts.
    """
    tables = []
    for update in rollouts:
        batch = training_batch(update, version="v", grouping=grouping, scaling=scaling)  # type: ignore[arg-type]
        tables.append(coefficients(batch, weighted) * batch.total_rows / batch.rollouts * G / (G - 1))
    return torch.stack(tables)


def measured(bandit: Bandit, rollouts: list[list[Rollout]], **how) -> tuple[float, float]:
    """Cosine of the mean estimate with the exact gradient, and its length along it in units of the exact one."""
    exact = bandit.exact_gradient().double()
    mean = estimates(rollouts, **how).mean(0) @ bandit.scores().double()
    return (
        round(float(torch.nn.functional.cosine_similarity(mean, exact, dim=0)), 4),
        round(float(mean @ exact / exact.norm() ** 2), 3),
    )


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo"])
@pytest.mark.parametrize("grouping", ["predictor", "trajectory"])
def test_the_trainers_gradient_is_the_sum_over_rows(branching, branching_rollouts, tmp_path: Path, grouping, loss):
    batch = training_batch(branching_rollouts[0], version="v", grouping=grouping, scaling="none")
    assert len({len(r.prompt_ids) for r in batch.rows}) == 2
    model = copy.deepcopy(branching.model)
    settings = GrpoSettings(
        updates=1, learning_rate=1e-3, warmup=0, schedule="constant", temperature=1.0, beta=0.0, loss=loss,
        max_grad_norm=1e9, max_completion=1, max_tokens=4096, save_every=100, seed=0,
    )  # fmt: skip
    trainer = ProgramTrainer(model, tokenizer(), settings, tmp_path, lambda update: batch, lambda u, m: None)
    trainer.current_gradient_accumulation_steps = 1
    model.zero_grad()
    trainer.training_step(model, {})
    found = -flat(p.grad for p in model.parameters())
    expected = (coefficients(batch) @ branching.scores().double()).float()
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("grouping", ["predictor", "trajectory"])
def test_the_unscaled_estimate_is_the_exact_policy_gradient(fixed, fixed_rollouts, grouping):
    """Along the exact gradient and along four random directions, to 1 % of its length."""
    exact = fixed.exact_gradient().double()
    size = float(exact.norm())
    noise = torch.randn(4, len(exact), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    directions = torch.cat([exact[None], noise])
    directions = directions / directions.norm(dim=1, keepdim=True)
    seen = estimates(fixed_rollouts, grouping) @ (fixed.scores().double() @ directions.T)
    error = seen.std(0) / len(seen) ** 0.5
    z = (seen.mean(0) - directions @ exact) / error
    print(
        f"\n{grouping}: {G * E * len(seen)} rollouts; along the exact gradient {float(seen.mean(0)[0]) / size:.4f} of "
        f"it, standard error {float(error[0]) / size:.4f}; z {[round(float(x), 2) for x in z]}"
    )
    assert float(error.max()) < 0.01 * size
    assert float(z.abs().max()) < 3


def test_a_mean_of_g_shrinks_the_estimate_by_one_in_g(fixed, fixed_rollouts):
    """Without the correction the estimate is (1 − 1/G) of the gradient, plainly outside the error."""
    exact = fixed.exact_gradient().double()
    along = fixed.scores().double() @ (exact / exact.norm())
    seen = estimates(fixed_rollouts) @ along * (G - 1) / G
    error = float(seen.std()) / len(seen) ** 0.5
    assert abs(float(seen.mean()) - (1 - 1 / G) * float(exact.norm())) < 3 * error
    assert float(exact.norm()) - float(seen.mean()) > 10 * error


def test_scaling_lengthens_the_gradient_and_hardly_turns_it(fixed, fixed_rollouts):
    """A deviation below 1 divides: a longer step. ``batch`` divides an update by one number, ``group`` each example."""
    found = {how: measured(fixed, fixed_rollouts, scaling=how) for how in ("none", "batch", "group")}
    print("\ntwo calls each, (cosine, length):", found)
    assert found["none"][0] > 0.998
    assert found["none"][1] == pytest.approx(1, abs=0.03)
    for how in ("batch", "group"):
        assert found[how][0] > 0.98
        assert found[how][1] > 1.5


@pytest.mark.parametrize("grouping", ["predictor", "trajectory"])
def test_step_weights_turn_the_gradient_where_numbers_of_calls_differ(branching, branching_rollouts, grouping):
    """Rows that all count the same have the policy gradient; 1 / calls favours short trajectories' tokens."""
    same, weighted = (measured(branching, branching_rollouts, grouping=grouping, weighted=w) for w in (False, True))
    print(f"\n{grouping}, one call or two, (cosine, length): rows the same {same}, by trajectory {weighted}")
    assert same[0] > 0.99
    assert same[1] == pytest.approx(1, abs=0.06)
    assert 0.8 < weighted[0] < 0.97
