"""QLoRA: adapters on a base in 4 bit, which samples, is trained on and never changes. On the CPU, with bitsandbytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dspy_parts import chats
from safetensors.torch import load_file
from test_dspy_provider import TAUGHT
from test_engine import forward_logprobs, prompts
from test_grpo import make_batch, make_rows, trainer
from test_predictor_adapters import NAMES, each, pair_task
from test_weight_lever import has_rare_letter, improve, make_task, settings

import colever
from colever.config import WeightSettings
from colever.engines.adapters import adapter_folders
from colever.engines.branches import supports_branches
from colever.engines.generation import ModelShape, TokenRequest
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.engines.weights import ADAPTER_FILE
from colever.errors import BudgetExhausted, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress
from colever.optimizers.trainable import resolved, trainable
from colever.optimizers.weight_lever import WeightLever
from colever.types import Weights

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return open_engine(tiny_checkpoint, quantization="nf4")


@pytest.fixture(scope="module")
def plain(tiny_checkpoint):
    return open_engine(tiny_checkpoint)


@pytest.fixture(autouse=True)
def _base_weights(engine):
    engine.load(Weights())


def base_bytes(engine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in engine.model.named_parameters() if "lora" not in n}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def requests(engine, temperature: float = 1.0) -> list[TokenRequest]:
    return [TokenRequest(p, 12, temperature, seed=i) for i, p in enumerate([*prompts(engine, 3)] * 2)]


def test_linear_layers_lie_in_four_bit_doubly_quantized_and_nothing_else(engine, plain):
    layers = [m for m in engine.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    assert all(m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in layers)
    kinds = {n: p.dtype for n, p in engine.model.named_parameters()}
    assert sum(kind == torch.uint8 for kind in kinds.values()) == 14
    assert set(kinds.values()) == {torch.uint8, torch.float32}
    assert engine.quantized
    assert not plain.quantized


def test_it_samples_as_the_dequantized_model_in_float32_would(engine, plain):
    made = engine.generate(requests(engine))
    for one in made:
        expected = forward_logprobs(engine, one, 1.0)
        torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=1e-4, rtol=0)
    for name, module in engine.model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.model.get_submodule(name).weight.data.copy_(weight)
    plain.touched()
    assert [m.completion_ids for m in plain.generate(requests(plain))] == [m.completion_ids for m in made]
    plain.load(Weights())
    assert [m.completion_ids for m in plain.generate(requests(plain))] != [m.completion_ids for m in made]


def test_the_digest_and_the_state_say_so(engine, plain, tiny_checkpoint):
    again = open_engine(tiny_checkpoint, quantization="nf4")
    assert again.digest == engine.digest != plain.digest
    assert TransformersEngine.load_state(engine.dump_state()).quantization == "nf4"
    assert TransformersEngine.load_state(plain.dump_state()).quantization == "none"


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_a_rare_word_becomes_common_and_the_base_stays(engine, tiny_checkpoint, tmp_path, peft):
    before = base_bytes(engine)
    how = settings(
        peft=peft, updates=20, examples_per_update=4, group_size=8, learning_rate=1e-2, save_every=50, empty_updates=20
    )
    pull = improve(engine, tmp_path, how, make_task(has_rare_letter, max_tokens=6))
    reward = [v for _, v in pull.metrics["reward"]]
    assert sum(reward[:3]) / 3 < 0.4
    assert sum(reward[-3:]) / 3 > 0.9
    assert max(v for _, v in pull.metrics["logprob_gap"]) <= 1e-4
    assert pull.notes["alarms"] == []
    child = pull.candidate.weights
    tensors = load_file(Path(child.path) / ADAPTER_FILE)
    assert child.kind == "lora"
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert any(not torch.equal(t, t.bfloat16().float()) for n, t in tensors.items() if "lora_A" in n)  # not rounded
    in_place = engine.generate(requests(engine))
    fresh = open_engine(tiny_checkpoint, quantization="nf4")
    fresh.load(child)
    assert [m.completion_ids for m in fresh.generate(requests(fresh))] == [m.completion_ids for m in in_place]
    engine.load(Weights())
    assert same(before, base_bytes(engine))


@pytest.mark.parametrize(
    "how",
    [settings(peft="lora", beta=0.1), each()],
    ids=["lora and a penalty", "lora per predictor"],
)
def test_an_interrupted_pull_ends_with_the_same_weights(engine, tmp_path, how):
    whole = improve(engine, tmp_path / "whole", how, pair_task())
    engine.load(Weights())
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path / "cut", how, pair_task(), budget=Budget({"rollouts": 3 * 8}))
    resumed = improve(engine, tmp_path / "cut", how, pair_task())
    assert resumed.candidate.weights.digest == whole.candidate.weights.digest
    assert resumed.notes == whole.notes
    assert max(v for _, v in whole.metrics["logprob_gap"]) <= 1e-4
    if how.beta:
        assert whole.metrics["kl"][0][1] == pytest.approx(0, abs=1e-6)
    if how.adapters == "per_predictor":
        assert list(adapter_folders(whole.candidate.weights)) == NAMES
    two = improve(engine, tmp_path / "two", how, pair_task(), parent=whole.candidate)
    assert two.candidate.weights.digest != whole.candidate.weights.digest


def test_prefixes_are_shared_and_work_is_counted_as_on_the_plain_model(engine, plain, tmp_path):
    assert supports_branches(engine.model)
    assert ModelShape.of(engine.model) == ModelShape.of(plain.model)
    found = []
    for share in (True, False):
        with trainable(engine, Weights(), settings(peft="lora"), 3) as model:
            with torch.no_grad():
                for n, p in model.named_parameters():
                    if "lora_B" in n:
                        p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            t = trainer(model, engine.tokenizer, tmp_path, make_batch(make_rows()), share_prefixes=share)
            t.current_gradient_accumulation_steps = 1
            t.training_step(t.model, {})
            found.append(({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, t.flops))
            t.release()
        engine.load(Weights())
    (shared, less), (padded, more) = found
    assert len(shared) == 28
    assert shared.keys() == padded.keys()
    for name, grad in shared.items():
        assert torch.allclose(grad, padded[name], atol=1e-5, rtol=1e-4), name
    assert 0 < less < more


def test_all_weights_cannot_be_trained_or_loaded(engine, plain, tmp_path):
    with pytest.raises(UsageError, match=r"weights\.peft=none.*engine\.quantization=nf4.*accepted: weights\.peft=lora"):
        improve(engine, tmp_path / "1", settings(peft="none"))
    full = improve(plain, tmp_path / "2", settings(updates=1)).candidate
    plain.load(Weights())
    with pytest.raises(UsageError, match=r"full weights.*quantized.*accepted"):
        engine.load(full.weights)
    assert engine.version == "base"
    assert resolved(WeightSettings(), "seed", adapters_only=True).peft == "lora"


def test_it_is_not_cut_into_shares(engine, tmp_path):
    task = make_task()
    lever = WeightLever(settings(peft="lora"), sharding="fsdp")
    with pytest.raises(UsageError, match=r"training\.sharding=fsdp.*accepted with it: none"):
        lever.improve(task.base_candidate(), task, engine, Budget(), 0, tmp_path, NullProgress())


def test_dspys_supervised_training_makes_an_adapter_too(engine, finetune_home):
    lm = colever.engine_lm(engine, weights=Weights(), max_tokens=24)
    job = lm.finetune([{"messages": c} for c in chats("7", 8)], "chat", TAUGHT | {"peft": "lora"})
    weights = engine.named.find(job.result().model)
    assert weights.kind == "lora"
    assert {t.dtype for t in load_file(Path(weights.path) / ADAPTER_FILE).values()} == {torch.float32}
    refused = lm.finetune([{"messages": c} for c in chats("7", 8)], "chat", TAUGHT).result()
    assert isinstance(refused, UsageError)
