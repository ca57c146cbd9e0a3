"""The benchmarks' floor: the least work of some calls, against counting by hand and against what torch dispatches."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from colever.engines.generation import ModelShape


@pytest.fixture(scope="module")
def floors() -> Any:
    file = Path(__file__).parents[1] / "benchmarks" / "floors.py"
    spec = importlib.util.spec_from_file_location("floors", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["floors"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def by_hand(model: Any, calls: list[tuple[tuple[int, ...], int]]) -> float:
    """Every distinct prompt prefix is one position that attends to its own length; then each call's fed tokens."""
    prefixes = {prompt[:n] for prompt, _ in calls for n in range(1, len(prompt) + 1)}
    fed = [len(prompt) + n for prompt, completion in calls for n in range(1, completion)]
    pairs = sum(map(len, prefixes)) + sum(fed)
    heads = len({prompt for prompt, _ in calls}) + len(fed)
    return ModelShape.of(model).flops(len(prefixes) + len(fed), pairs, heads)


def test_least_flops_count_every_distinct_position_once(floors: Any, model: Any) -> None:
    calls = [((1, 2, 3, 4), 3), ((1, 2, 3, 4), 5), ((1, 2, 7), 1), ((9,), 2), ((1, 2), 4), ((1, 2, 3, 4, 5, 6), 2)]
    assert floors.least_flops(model, calls) == by_hand(model, calls)
    assert floors.least_flops(model, calls) < sum(floors.least_flops(model, [call]) for call in calls)


def test_an_empty_completion_is_refused(floors: Any, model: Any) -> None:
    with pytest.raises(ValueError, match="a completion has no token"):
        floors.least_flops(model, [((1, 2), 0)])


def test_a_served_call_without_cache_is_one_call_of_the_floor(floors: Any, model: Any) -> None:
    assert floors.served_flops(model, [(5, 0, 3)]) == floors.least_flops(model, [((1, 2, 3, 4, 5), 3)])
    assert floors.served_flops(model, [(5, 4, 3)]) < floors.served_flops(model, [(5, 0, 3)])


def test_counted_flops_of_one_masked_pass_are_the_shape_s(floors: Any, model: Any) -> None:
    rows, length = 3, 16
    ids = torch.ones(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # a padded batch has a mask, and then attention computes every pair
    with torch.no_grad():
        counted = floors.counted_flops(lambda: model(input_ids=ids, attention_mask=mask))
    assert counted == ModelShape.of(model).flops(rows * length, rows * length**2, rows * length)
