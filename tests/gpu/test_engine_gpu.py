"""The engine on a GPU against ``generate`` and a plain forward pass; run by ``make test-gpu``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_checkpoint

from colever.engines.generation import TokenRequest
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.errors import InfrastructureError
from colever.types import Completion, Weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TransformersEngine:
    return open_engine(checkpoint, device="cuda")


def requests(engine: TransformersEngine, count: int, group: int, **fields: Any) -> list[TokenRequest]:
    text = "Answer the question as well as you can. "
    prompts = [
        engine.render([{"role": "system", "content": text}, {"role": "user", "content": f"{i} " * (1 + i % 4)}])
        for i in range(count)
    ]
    base = TokenRequest((0,), 30, 1.0)
    return [replace(base, prompt_ids=p, seed=99 * i + g, **fields) for i, p in enumerate(prompts) for g in range(group)]


def recomputed(engine: TransformersEngine, made: Completion, temperature: float) -> torch.Tensor:
    ids = torch.tensor([[*made.prompt_ids, *made.completion_ids]], device=engine.device)
    with torch.no_grad():
        logits = engine.model(ids).logits[0].float() / (temperature or 1.0)
    start = len(made.prompt_ids) - 1
    rows = logits[start : start + len(made.completion_ids)].log_softmax(-1)
    return rows.gather(1, ids[0, start + 1 :, None])[:, 0].cpu()


def gap(engine: TransformersEngine, made: Sequence[Completion], temperature: float) -> float:
    return max(float((torch.tensor(m.logprobs) - recomputed(engine, m, temperature)).abs().max()) for m in made)


def test_auto_is_the_gpu(checkpoint: Path) -> None:
    assert open_engine(checkpoint).device.type == "cuda"


def test_greedy_equals_generate_of_transformers(engine: TransformersEngine) -> None:
    for made in engine.generate(requests(engine, 6, 1, temperature=0.0)):
        ids = torch.tensor([made.prompt_ids], device=engine.device)
        want = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        assert list(made.completion_ids) == want[0, ids.shape[1] :].tolist()
    assert not engine._generator.replayer.failed


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_agree_with_a_plain_forward_pass(engine: TransformersEngine, temperature: float) -> None:
    assert gap(engine, engine.generate(requests(engine, 5, 3, temperature=temperature)), temperature) < 1e-4


def test_bfloat16_log_probabilities_are_near_a_plain_forward_pass(checkpoint: Path) -> None:
    half = open_engine(checkpoint, device="cuda", dtype="bfloat16")
    assert gap(half, half.generate(requests(half, 5, 3)), 1.0) < 1.0  # logits of this model are large


def test_replayed_steps_equal_single_ones(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [replace(r, max_tokens=14 + i % 50) for i, r in enumerate(requests(engine, 7, 6))]
    replayed = engine.generate(wanted)
    monkeypatch.setattr(engine._generator, "fixed_steps", False)
    for one, other in zip(replayed, engine.generate(wanted), strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    monkeypatch.undo()
    assert [m.completion_ids for m in engine.generate(wanted)] == [m.completion_ids for m in replayed]
    assert not engine._generator.replayer.failed
    assert torch.rand(2, device="cuda").shape == (2,)  # no capture has kept torch's own generator


def test_the_cpu_makes_the_same_completions(engine: TransformersEngine, checkpoint: Path) -> None:
    wanted = requests(engine, 5, 3)
    other = open_engine(checkpoint, device="cpu")
    same = sum(
        a.completion_ids == b.completion_ids
        for a, b in zip(engine.generate(wanted), other.generate(wanted), strict=True)
    )
    assert same >= len(wanted) - 1  # a uniform may fall on another side of a rounded border


def test_adapters_are_swapped_and_base_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(tmp_path)
    own = open_engine(checkpoint, device="cuda")
    wanted = requests(own, 3, 2)
    base = own.generate(wanted)
    own.load(Weights("lora", str(tmp_path), "lora-1"))
    changed = own.generate(wanted)
    assert gap(own, changed, 1.0) < 1e-4
    assert [m.completion_ids for m in changed] != [m.completion_ids for m in base]
    own.load(Weights())
    assert own.generate(wanted) == base


def test_running_out_of_memory_names_the_setting(checkpoint: Path) -> None:
    own = open_engine(checkpoint, device="cuda", max_batch_tokens=10**9)
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + 2**20) / torch.cuda.get_device_properties(0).total_memory
    wanted = requests(own, 8, 64, max_tokens=1500)
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(InfrastructureError, match="max_batch_tokens"):
            own.generate(wanted)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(own.generate(requests(own, 2, 2))) == 4
