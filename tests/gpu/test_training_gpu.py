"""The weight lever on a GPU: the shared layout against padded rows, learning, resuming; run by ``make test-gpu``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_shared_prefix import WORKLOADS, batch, tiny_model
from test_weight_lever import make_task, settings

from colever.engines import prefix_layout as pl
from colever.engines.lm import open_engine
from colever.errors import InfrastructureError, LeverError
from colever.optimizers import shared_prefix as sp
from colever.optimizers.budget import Budget
from colever.optimizers.importance import corrects
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.weight_lever import WeightLever

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def padded(model: Any, ids: Any, mask: Any, width: int) -> Any:
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -width - 1 : -1].float()
    return logits.log_softmax(-1).gather(2, ids[:, -width:, None])[..., 0] * mask[:, -width:]


def shared(model: Any, ids: Any, mask: Any, width: int) -> Any:
    layout = pl.build_layout(ids, mask, width)
    logprob_N, _ = model(branches=layout)
    return torch.zeros(ids.shape[0] * width, device="cuda").scatter(0, layout.target_N, logprob_N).view(-1, width)


def both(name: str, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Log-probabilities and gradients of padded rows in float32, and of the shared layout in ``dtype``."""
    ids, mask, width = batch(WORKLOADS[name])
    weight = torch.randn(ids.shape[0], width, generator=torch.Generator().manual_seed(3)).cuda()
    ids, mask = ids.cuda(), mask.cuda()
    made = []
    for layout, kind in ((padded, torch.float32), (shared, dtype)):
        model = tiny_model().to("cuda", dtype).to(kind)  # the same rounded weights in both
        sp.add_branches(model, 1.0)
        logprobs = layout(model, ids, mask, width)
        (logprobs * weight).sum().backward()
        made.append((logprobs.detach(), {n: p.grad.float() for n, p in model.named_parameters()}))
    (one, first), (other, second) = made
    return one, other, first, second


@pytest.mark.parametrize("name", WORKLOADS)
def test_shared_prefixes_equal_padded_rows(name: str) -> None:
    plain, ours, expected, grads = both(name, torch.float32)
    torch.testing.assert_close(ours, plain, atol=5e-5, rtol=1e-5)
    for key, want in expected.items():
        assert (grads[key] - want).abs().max() / want.abs().max().clamp(min=1e-3) < 5e-5, key


@pytest.mark.parametrize("name", WORKLOADS)
def test_in_bfloat16_they_are_near_them(name: str) -> None:
    plain, ours, expected, grads = both(name, torch.bfloat16)
    assert (ours - plain).norm() / plain.norm().clamp(min=1e-3) < 0.05
    for key, want in expected.items():
        assert (grads[key] - want).norm() / want.norm().clamp(min=1e-2) < 0.1, key


def pull(checkpoint: Path, folder: Path, dtype: str = "float32", **changes: Any) -> tuple[Pull, Any]:
    engine = open_engine(checkpoint, device="cuda", dtype=dtype)
    task, how = make_task(max_tokens=24), settings(**changes)
    made = WeightLever(how).improve(task.base_candidate(), task, engine, Budget(), 0, folder, NullProgress())
    return made, engine


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_sampler_and_trainer_agree_and_the_reward_rises(tiny_checkpoint: Path, tmp_path: Path, peft: str) -> None:
    made, engine = pull(tiny_checkpoint, tmp_path, peft=peft, updates=15, examples_per_update=4, learning_rate=3e-3)
    assert max(v for _, v in made.metrics["logprob_gap"]) < 1e-4
    assert "importance_ratio" not in made.metrics
    rewards = [v for _, v in made.metrics["reward"]]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert engine.device.type == "cuda"


def test_bfloat16_applies_importance_ratios(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made, engine = pull(tiny_checkpoint, tmp_path, "bfloat16", peft="lora")
    assert corrects("auto", engine)
    ratios = [v for _, v in made.metrics["importance_ratio"]]
    assert all(abs(r - 1) < 0.2 for r in ratios)
    trained = [p for p in engine.adapter.parameters() if p.requires_grad] if engine.adapter is not None else []
    assert all(p.dtype == torch.float32 for p in trained)


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_pull_that_stopped_goes_on_from_its_checkpoint(tiny_checkpoint: Path, tmp_path: Path, peft: str) -> None:
    whole, _ = pull(tiny_checkpoint, tmp_path / "whole", peft=peft)

    class Stop(NullProgress):
        def update(self, done: int, *rest: Any) -> None:
            if done == 3:
                raise LeverError("stopped")

    engine, task = open_engine(tiny_checkpoint, device="cuda"), make_task(max_tokens=24)
    lever = WeightLever(settings(peft=peft))
    with pytest.raises(LeverError, match="stopped"):
        lever.improve(task.base_candidate(), task, engine, Budget(), 0, tmp_path / "part", Stop())
    again = lever.improve(task.base_candidate(), task, engine, Budget(), 0, tmp_path / "part", NullProgress())
    for (_, one), (_, other) in zip(whole.metrics["reward"], again.metrics["reward"], strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    for (_, one), (_, other) in zip(whole.metrics["loss"], again.metrics["loss"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_running_out_of_memory_in_a_pull_names_a_setting(tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine, task = open_engine(tiny_checkpoint, device="cuda"), make_task(max_tokens=200)
    how = settings(group_size=64, batch_tokens=10**6)

    class Tight(NullProgress):
        """Leaves almost no room after the first update, for whatever comes next."""

        def update(self, *rest: Any) -> None:
            torch.cuda.empty_cache()
            share = (torch.cuda.memory_reserved() + 2**21) / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(share)

    try:
        with pytest.raises((LeverError, InfrastructureError), match=r"out of memory.*batch_tokens"):
            WeightLever(how).improve(task.base_candidate(), task, engine, Budget(), 0, tmp_path, Tight())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
