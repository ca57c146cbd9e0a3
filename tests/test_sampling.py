"""Sampling: distribution, greedy, truncation, log-probabilities, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colever.engines.sampling import Sampling, sample, uniforms

CPU = torch.device("cpu")


def how(rows: int, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Sampling:
    return Sampling.of([temperature] * rows, [top_k] * rows, [top_p] * rows, CPU)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.5, 0.3]])
    count = 20_000
    ids, _ = sample(logits.expand(count, -1), torch.from_numpy(uniforms(3, count)), how(count, temperature))
    wanted = (logits[0] / temperature).softmax(-1)
    np.testing.assert_allclose(torch.bincount(ids, minlength=5) / count, wanted, atol=0.012)


def test_greedy_takes_the_best_and_gives_its_log_probability_at_temperature_one() -> None:
    logits = torch.randn(7, 50)
    ids, logprobs = sample(logits, torch.rand(7), how(7, 0.0))
    assert ids.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_log_probabilities_are_those_of_the_tempered_distribution() -> None:
    logits = torch.randn(9, 30)
    ids, logprobs = sample(logits, torch.rand(9), how(9, 0.7))
    torch.testing.assert_close(logprobs, (logits / 0.7).log_softmax(-1).gather(1, ids[:, None])[:, 0])


def test_top_k_and_top_p_keep_the_best() -> None:
    logits = torch.tensor([[3.0, 2.9, 0.0, -1.0]]).expand(500, -1)
    draws = torch.from_numpy(uniforms(1, 500))
    assert set(sample(logits, draws, how(500, 1.0, top_k=1))[0].tolist()) == {0}
    assert set(sample(logits, draws, how(500, 1.0, top_k=3))[0].tolist()) == {0, 1, 2}
    assert set(sample(logits, draws, how(500, 1.0, top_p=0.6))[0].tolist()) == {0, 1}
    assert set(sample(logits, draws, how(500, 1.0, top_p=0.0))[0].tolist()) == {0}


def test_a_row_does_not_depend_on_the_others() -> None:
    logits, draws = torch.randn(6, 40), torch.rand(6, dtype=torch.float64)
    mixed = Sampling.of([0.0, 1.0, 0.5, 0.0, 1.3, 1.0], [None, 5, None, None, 2, None], [None] * 5 + [0.5], CPU)
    together, _ = sample(logits, draws, mixed)
    for row, (t, k, p) in enumerate(
        zip([0.0, 1.0, 0.5, 0.0, 1.3, 1.0], [None, 5, None, None, 2, None], [None] * 5 + [0.5], strict=True)
    ):
        alone, _ = sample(logits[row : row + 1], draws[row : row + 1], Sampling.of([t], [k], [p], CPU))
        assert alone.item() == together[row].item()


def test_uniforms_are_a_function_of_seed_and_place() -> None:
    assert uniforms(5, 100)[:10].tolist() == uniforms(5, 10).tolist()
    assert uniforms(5, 10).tolist() != uniforms(6, 10).tolist()
    assert uniforms(2**64 - 1, 1).shape == (1,)


def test_the_last_id_can_be_drawn_and_none_beyond() -> None:
    ids, _ = sample(torch.zeros(2, 4), torch.tensor([1 - 1e-16, 0.0], dtype=torch.float64), how(2))
    assert ids.tolist() == [3, 0]
