"""Our trainer against TRL's own on the same batch, and its parts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from colever.errors import LeverError
from colever.optimizers.checkpoint import last_checkpoint
from colever.optimizers.grpo import ProgramTrainer
from colever.optimizers.grpo_settings import GrpoSettings, rate
from colever.optimizers.trajectories import Row, TrainingBatch, parts

LENGTHS = {(40, "a"): [5, 9, 2, 7], (40, "b"): [4, 4, 6, 1], (13, "c"): [8, 3, 3, 5], (55, "d"): [6, 2, 9, 9]}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def make_rows(seed: int = 0) -> list[Row]:
    g = torch.Generator().manual_seed(seed)
    rows = []
    for (prompt, name), lengths in LENGTHS.items():
        ids = tuple(torch.randint(0, 250, (prompt,), generator=g).tolist())
        for sample, n in enumerate(lengths):
            completion = tuple(torch.randint(0, 250, (n,), generator=g).tolist())
            advantage = float(torch.randn(1, generator=g))
            rows.append(Row((name, "p", 0), sample, ids, completion, (-1.0,) * n, 0.0, advantage, 1.0))
    return rows


def make_batch(rows: list[Row]) -> TrainingBatch:
    tokens = sum(len(r.completion_ids) for r in rows)
    return TrainingBatch(tuple(rows), len(rows), tokens, 4, 0, len(rows), 0, 0, 0.5, {}, {})


def trainer(model, tokenizer, folder: Path, batch: TrainingBatch, after=lambda u, m: None, **changes) -> ProgramTrainer:
    values = {
        "updates": 1, "learning_rate": 1e-3, "warmup": 0, "schedule": "constant", "temperature": 0.8, "beta": 0.0,
        "loss": "dapo", "max_grad_norm": 1e9, "max_completion": 16, "max_tokens": 4096, "save_every": 100, "seed": 0,
    } | changes  # fmt: skip
    return ProgramTrainer(model, tokenizer, GrpoSettings(**values), folder, lambda update: batch, after)


def gradients(model, t: ProgramTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    t.current_gradient_accumulation_steps = 1
    model.zero_grad()
    loss = t.training_step(t.model, {})
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    t.release()
    return float(loss), grads


def trl_gradients(model, tokenizer, folder: Path, rows: list[Row], loss: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The stock trainer's own loss on its own layout."""
    from datasets import Dataset

    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=16, bf16=False,
        temperature=0.8, loss_type=loss, report_to="none", use_cpu=True, gradient_checkpointing=False,
        epsilon_high=5.0 if loss == "cispo" else None, disable_tqdm=True,
    )  # fmt: skip
    stock = GRPOTrainer(
        model=model, reward_funcs=lambda **kw: [0.0], args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [""] * 2}),
    )  # fmt: skip
    stock.current_gradient_accumulation_steps = 1
    left, width = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)

    def padded(values, pad, size, right):
        gap = [pad] * (size - len(values))
        return [*values, *gap] if right else [*gap, *values]

    inputs = {
        "prompt_ids": torch.tensor([padded(r.prompt_ids, 0, left, False) for r in rows]),
        "prompt_mask": torch.tensor([padded([1] * len(r.prompt_ids), 0, left, False) for r in rows]),
        "completion_ids": torch.tensor([padded(r.completion_ids, 0, width, True) for r in rows]),
        "completion_mask": torch.tensor([padded([1] * len(r.completion_ids), 0, width, True) for r in rows]),
        "advantages": torch.tensor([r.advantage for r in rows]),
        "num_items_in_batch": torch.tensor(float(sum(len(r.completion_ids) for r in rows))),
    }
    model.train()
    model.zero_grad()
    value = stock.compute_loss(model, inputs)
    value.backward()
    return float(value.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_tokens", [4096, 120])
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "cispo"])
def test_loss_and_gradients_equal_stock_trl(model, tokenizer, tmp_path, loss, max_tokens):
    rows = make_rows()
    expected_loss, expected = trl_gradients(copy.deepcopy(model), tokenizer, tmp_path / "trl", rows, loss)
    ours = trainer(model, tokenizer, tmp_path / "ours", make_batch(rows), loss=loss, max_tokens=max_tokens)
    value, grads = gradients(model, ours)
    assert value == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert (grad - expected[name]).abs().max() <= 1e-5 * max(1e-2, float(expected[name].abs().max())), name


def test_shared_prefixes_and_padded_rows_agree(model, tokenizer, tmp_path):
    batch = make_batch(make_rows())
    shared = trainer(copy_of := copy.deepcopy(model), tokenizer, tmp_path / "1", batch)
    padded = trainer(model, tokenizer, tmp_path / "2", batch, share_prefixes=False)
    one, two = gradients(copy_of, shared), gradients(model, padded)
    assert one[0] == pytest.approx(two[0], rel=1e-5, abs=1e-6)
    for name, grad in one[1].items():
        assert torch.allclose(grad, two[1][name], atol=1e-6, rtol=1e-4), name
    assert 0 < shared.flops < padded.flops


def test_constant_groups_count_in_the_divisor(model, tokenizer, tmp_path):
    """Rows with advantage 0 left out, or left in: the same gradient."""
    rows = make_rows()
    silent = [Row(r.group, r.sample, r.prompt_ids, r.completion_ids, r.logprobs, 0.0, 0.0, 1.0) for r in rows[:4]]
    everything = make_batch([*silent, *rows[4:]])
    kept = TrainingBatch(tuple(rows[4:]), len(rows), everything.total_tokens, 4, 1, 16, 0, 0, 0.5, {}, {})
    one = gradients(model, trainer(model, tokenizer, tmp_path / "1", everything))
    two = gradients(model, trainer(model, tokenizer, tmp_path / "2", kept))
    for name, grad in one[1].items():
        assert torch.allclose(grad, two[1][name], atol=1e-6), name


def test_an_update_without_rows_changes_nothing(model, tokenizer, tmp_path):
    before = copy.deepcopy(model.state_dict())
    empty = TrainingBatch((), 8, 40, 2, 2, 8, 0, 0, 0.0, {}, {})
    t = trainer(model, tokenizer, tmp_path, empty, updates=2)
    t.run(None)
    t.release()
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_value_that_is_not_finite_is_refused_before_it_reaches_the_weights(model, tokenizer, tmp_path):
    before = copy.deepcopy(model.state_dict())
    rows = make_rows()
    rows[0] = Row(
        rows[0].group, 0, rows[0].prompt_ids, rows[0].completion_ids, rows[0].logprobs, 0.0, float("inf"), 1.0
    )
    t = trainer(model, tokenizer, tmp_path, make_batch(rows))
    with pytest.raises(LeverError, match="Try a lower learning_rate"):
        t.run(None)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_the_gap_to_the_sampler_is_measured(model, tokenizer, tmp_path):
    heard = []
    t = trainer(model, tokenizer, tmp_path, make_batch(make_rows()), lambda u, m: heard.append((u, m)))
    t.run(None)
    ((update, metrics),) = heard
    assert update == 0
    assert metrics["logprob_gap"] > 1  # these log-probabilities were made up
    assert {"loss", "grad_norm", "learning_rate", "entropy", "clip_fraction", "seconds/update"} <= metrics.keys()


def test_half_a_checkpoint_is_passed_over(model, tokenizer, tmp_path):
    t = trainer(model, tokenizer, tmp_path, make_batch(make_rows()), updates=3, save_every=1)
    t.run(None)
    newest, _ = last_checkpoint(tmp_path)
    assert newest.name == "checkpoint-3"
    (newest / "pull.json").unlink()
    older, memory = last_checkpoint(tmp_path)
    assert older.name == "checkpoint-2"
    assert memory == {}
    assert not newest.exists()
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("max_tokens", [60, 130, 10_000])
def test_parts_hold_every_row_once_within_the_limit(max_tokens):
    rows = make_rows()
    split = list(parts(rows, max_tokens))
    assert sorted((r.group, r.sample) for part in split for r in part) == sorted((r.group, r.sample) for r in rows)
    for part in split:
        prompts = {r.prompt_ids for r in part}
        size = sum(len(p) - 1 for p in prompts) + sum(len(r.completion_ids) for r in part)
        assert size <= max_tokens or len(part) == 1
    assert list(parts([], 10)) == []


def test_learning_rate_never_starts_at_zero():
    assert rate(0, 10, 4, "constant") == pytest.approx(0.2)
    assert rate(4, 10, 4, "constant") == 1.0
    assert rate(9, 10, 4, "linear") == pytest.approx(1 / 6)
    assert rate(0, 10, 0, "cosine") == 1.0
