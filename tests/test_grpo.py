"""Our trainer against TRL's own on the same batch, for every loss, level and split, and the trainer's parts."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import byte_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from colever.errors import LeverError
from colever.optimizers.checkpoint import last_checkpoint
from colever.optimizers.grpo import ProgramTrainer
from colever.optimizers.grpo_settings import GrpoSettings, rate
from colever.optimizers.importance import CAP, corrects, tapered_ratio
from colever.optimizers.trajectories import Row, TrainingBatch, parts

LOSSES = ["dapo", "grpo", "dr_grpo", "bnpo", "cispo"]
LEVELS = ["token", "sequence"]
LENGTHS = {(40, "a"): [5, 9, 2, 7], (40, "b"): [4, 4, 6, 1], (13, "c"): [8, 3, 3, 5], (55, "d"): [6, 2, 9, 9]}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(path := tmp_path_factory.mktemp("base"))
    return path


@pytest.fixture
def model(base):
    return Qwen3ForCausalLM.from_pretrained(base).eval()


@pytest.fixture
def moved(model):
    """A policy at some distance from its base: the KL penalty has a gradient."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


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


def trainer(
    model, tokenizer, folder: Path, batch: TrainingBatch, after=lambda u, m: None, adapters=None, **changes
) -> ProgramTrainer:
    values = {
        "updates": 1, "learning_rate": 1e-3, "warmup": 0, "schedule": "constant", "temperature": 0.8, "beta": 0.0,
        "loss": "dapo", "max_grad_norm": 1e9, "max_completion": 16, "max_tokens": 4096, "save_every": 100, "seed": 0,
    } | changes  # fmt: skip
    how = GrpoSettings(**values)
    return ProgramTrainer(model, tokenizer, how, folder, lambda update: batch, after, adapters=adapters)


def gradients(model, t: ProgramTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    t.current_gradient_accumulation_steps = 1
    model.zero_grad()
    loss = t.training_step(t.model, {})
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    t.release()
    return float(loss), grads


def padded(values, pad, size: int, right: bool) -> list:
    gap = [pad] * (size - len(values))
    return [*values, *gap] if right else [*gap, *values]


def stock_inputs(rows: list[Row]) -> dict[str, torch.Tensor]:
    """The whole batch in one piece, as TRL lays it out."""
    left, width = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)
    return {
        "prompt_ids": torch.tensor([padded(r.prompt_ids, 0, left, False) for r in rows]),
        "prompt_mask": torch.tensor([padded([1] * len(r.prompt_ids), 0, left, False) for r in rows]),
        "completion_ids": torch.tensor([padded(r.completion_ids, 0, width, True) for r in rows]),
        "completion_mask": torch.tensor([padded([1] * len(r.completion_ids), 0, width, True) for r in rows]),
        "advantages": torch.tensor([r.advantage for r in rows]),
        "num_items_in_batch": torch.tensor(float(sum(len(r.completion_ids) for r in rows))),
    }


def stock_logprobs(stock: GRPOTrainer, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids, mask = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
    with torch.no_grad():
        return stock._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])[0]


def trl_gradients(
    model, tokenizer, folder: Path, rows: list[Row], loss: str, level: str = "token", beta=0.0, correct=False
) -> tuple[float, dict[str, torch.Tensor]]:
    """The stock trainer's own loss on its own layout; with ``correct`` through its branch for vLLM's samples."""
    from datasets import Dataset

    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=16, bf16=False,
        temperature=0.8, loss_type=loss, report_to="none", use_cpu=True, gradient_checkpointing=False, beta=beta,
        epsilon_high=5.0 if loss == "cispo" else None, importance_sampling_level=level, disable_tqdm=True,
    )  # fmt: skip
    stock = GRPOTrainer(
        model=model, reward_funcs=lambda **kw: [0.0], args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [""] * 2}),
    )  # fmt: skip
    stock.current_gradient_accumulation_steps = 1
    inputs = stock_inputs(rows)
    if beta:
        inputs["ref_per_token_logps"] = stock_logprobs(stock, stock.ref_model, inputs)
    if correct:
        stock.use_vllm = True
        width = inputs["completion_ids"].shape[1]
        sampled = torch.tensor([padded(r.logprobs, 0.0, width, True) for r in rows])
        difference = (stock_logprobs(stock, model, inputs) - sampled) * inputs["completion_mask"]
        inputs["importance_sampling_ratio"] = difference.exp().clamp(max=stock.vllm_importance_sampling_clip_max)
    model.train()
    model.zero_grad()
    value = stock.compute_loss(model, inputs)
    value.backward()
    return float(value.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[float, dict[str, torch.Tensor]], two: tuple[float, dict[str, torch.Tensor]]) -> None:
    """Losses and gradients, to 1e-5."""
    assert one[0] == pytest.approx(two[0], rel=1e-5, abs=1e-6)
    assert one[1].keys() == two[1].keys()
    for name, grad in one[1].items():
        assert (grad - two[1][name]).abs().max() <= 1e-5 * max(1e-2, float(two[1][name].abs().max())), name


@pytest.mark.parametrize(("max_tokens", "beta"), [(4096, 0.0), (120, 0.1)])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_equal_stock_trl(moved, tokenizer, tmp_path, loss, level, max_tokens, beta):
    rows = make_rows()
    expected = trl_gradients(copy.deepcopy(moved), tokenizer, tmp_path / "trl", rows, loss, level, beta)
    how = {"loss": loss, "level": level, "max_tokens": max_tokens, "beta": beta}
    assert_same(gradients(moved, trainer(moved, tokenizer, tmp_path / "ours", make_batch(rows), **how)), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_levels_agree_where_every_batch_is_trained_on_once(model, tokenizer, tmp_path, loss):
    """All ratios are 1 then, and a mean of ∇logp over a sequence is what the token level sums to."""
    found = [
        gradients(m, trainer(m, tokenizer, tmp_path / level, make_batch(make_rows()), loss=loss, level=level))
        for level, m in zip(LEVELS, (model, copy.deepcopy(model)), strict=True)
    ]
    assert_same((0.0, found[0][1]), (0.0, found[1][1]))


def sampled_elsewhere(model, tokenizer, folder: Path, rows: list[Row], spread: float) -> list[Row]:
    """Rows whose sampler's log-probabilities are the trainer's and noise, some beyond the cap."""
    t = trainer(model, tokenizer, folder, make_batch(rows))
    known = stock_logprobs(t, t.model, stock_inputs(rows))
    t.release()
    noise = spread * torch.randn(known.shape, generator=torch.Generator().manual_seed(2))
    return [
        dataclasses.replace(r, logprobs=tuple(p[: len(r.completion_ids)].tolist()))
        for r, p in zip(rows, known + noise, strict=True)
    ]


@pytest.mark.parametrize(("max_tokens", "beta"), [(4096, 0.0), (120, 0.1)])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_importance_correction_equals_stock_trls(moved, tokenizer, tmp_path, loss, level, max_tokens, beta):
    rows = sampled_elsewhere(moved, tokenizer, tmp_path / "0", make_rows(), 0.8)
    expected = trl_gradients(copy.deepcopy(moved), tokenizer, tmp_path / "trl", rows, loss, level, beta, correct=True)
    how = {"loss": loss, "level": level, "max_tokens": max_tokens, "beta": beta, "correct": True}
    ours = trainer(moved, tokenizer, tmp_path / "ours", make_batch(rows), **how)
    assert_same(gradients(moved, ours), expected)


def test_a_tapered_ratio_spares_what_the_trainer_hardly_says_and_leaves_what_it_should_say():
    known = torch.tensor([[0.2, 0.5, 0.9], [0.2, 0.5, 0.9]]).log().requires_grad_()
    sampled = torch.tensor([[0.8, 0.25, 0.9], [0.8, 0.25, 0.9]]).log()
    mask, advantages = torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([0.5, -0.5])
    ratio = tapered_ratio(known, sampled, mask, advantages)
    assert torch.allclose(ratio, torch.tensor([[1.0, 1.0, 1.0], [0.25, 1.0, 1.0]]))
    assert not ratio.requires_grad


@pytest.mark.parametrize(("max_tokens", "beta"), [(4096, 0.0), (120, 0.1)])
@pytest.mark.parametrize("loss", ["dapo", "dr_grpo", "cispo"])
def test_tapered_gradients_are_those_of_advantages_weighed_token_by_token(
    moved, tokenizer, tmp_path, loss, max_tokens, beta
):
    """What a row adds is linear in its advantage: a token may stand as a row of its own behind what came before."""
    rows = sampled_elsewhere(moved, tokenizer, tmp_path / "0", make_rows(), 0.8)
    t = trainer(copy.deepcopy(moved), tokenizer, tmp_path / "logps", make_batch(rows))
    known = stock_logprobs(t, t.model, stock_inputs(rows))
    t.release()
    apart = []
    for row, logps in zip(rows, known.tolist(), strict=True):
        for n, (token, sampled) in enumerate(zip(row.completion_ids, row.logprobs, strict=True)):
            ratio = min(1.0, math.exp(logps[n] - sampled)) if row.advantage < 0 else 1.0
            apart.append(
                dataclasses.replace(
                    row,
                    prompt_ids=row.prompt_ids + row.completion_ids[:n],
                    completion_ids=(token,),
                    logprobs=(sampled,),
                    advantage=row.advantage * ratio,
                )
            )
    divisors = make_batch(rows)
    batch = dataclasses.replace(make_batch(apart), total_rows=divisors.total_rows)
    how = {"loss": loss, "max_tokens": max_tokens, "beta": beta}
    expected = gradients(m := copy.deepcopy(moved), trainer(m, tokenizer, tmp_path / "apart", batch, **how))
    ours = trainer(moved, tokenizer, tmp_path / "ours", divisors, taper=True, folded=True, **how)
    loss_, grads = gradients(moved, ours)
    assert_same((loss_, grads), expected)
    assert 0.5 < ours._notes["importance_ratio"] < 1
    assert "logprob_gap" not in ours._notes


def test_the_fold_gap_is_the_mean_of_how_much_likelier_the_sampler_was(model, tokenizer, tmp_path):
    rows = sampled_elsewhere(model, tokenizer, tmp_path / "0", make_rows(), 0.0)
    rows = [dataclasses.replace(r, logprobs=tuple(p + 0.3 for p in r.logprobs)) for r in rows]
    for max_tokens in (4096, 60):
        t = trainer(m := copy.deepcopy(model), tokenizer, tmp_path / f"{max_tokens}", make_batch(rows), folded=True,
                    max_tokens=max_tokens)  # fmt: skip
        gradients(m, t)
        assert t._notes["fold_gap"] == pytest.approx(0.3, abs=1e-5)


def test_without_correction_the_samplers_numbers_change_nothing(model, tokenizer, tmp_path):
    rows = sampled_elsewhere(model, tokenizer, tmp_path / "0", make_rows(), 0.8)
    found = []
    for n, (some, correct) in enumerate([(make_rows(), False), (rows, False), (rows, True)]):
        t = trainer(m := copy.deepcopy(model), tokenizer, tmp_path / f"{n}", make_batch(some), correct=correct)
        found.append((gradients(m, t), t._notes))
    assert_same(found[0][0], found[1][0])
    assert "importance_ratio" not in found[1][1]
    assert any((g - found[2][0][1][n]).abs().max() > 1e-3 for n, g in found[1][0][1].items())
    assert 0.8 < found[2][1]["importance_ratio"] < CAP
    assert found[2][1]["logprob_gap"] > 1  # the alarm still hears of it


@pytest.mark.parametrize(("how", "in_place", "dtype", "expected"), [
    ("auto", True, "float32", False), ("auto", True, "bfloat16", True), ("auto", False, "float32", True),
    ("on", True, "float32", True), ("off", False, "bfloat16", False),
])  # fmt: skip
def test_correction_is_automatic_where_sampler_and_trainer_may_differ(how, in_place, dtype, expected):
    assert corrects(how, SimpleNamespace(trains_in_place=in_place, dtype=dtype)) is expected


def test_shared_prefixes_and_padded_rows_agree(model, tokenizer, tmp_path):
    batch = make_batch(make_rows())
    shared = trainer(copy_of := copy.deepcopy(model), tokenizer, tmp_path / "1", batch)
    padded = trainer(model, tokenizer, tmp_path / "2", batch, share_prefixes=False)
    one, two = gradients(copy_of, shared), gradients(model, padded)
    assert one[0] == pytest.approx(two[0], rel=1e-5, abs=1e-6)
    for name, grad in one[1].items():
        assert torch.allclose(grad, two[1][name], atol=1e-6, rtol=1e-4), name
    assert 0 < shared.flops < padded.flops


def test_padded_rows_that_need_fewer_flops_but_too_much_memory_stay_shared(model, tokenizer, tmp_path):
    """Rows of one length need no mask, so that padded they attend to half of what packed ones do: here for 3/2 of the
    tokens, which a part has room for or not."""
    g = torch.Generator().manual_seed(0)
    preamble, *own = (torch.randint(0, 250, (size,), generator=g).tolist() for size in (500, 4000, 4000))
    prompts = [(*preamble, *ids) for ids in own]
    batch = make_batch([
        Row((f"e{p}", "p", 0), i, prompts[p], (1, 2), (-1.0, -1.0), 0.0, 1.0, 1.0) for i, p in enumerate((0, 0, 1))
    ])  # fmt: skip
    roomy = trainer(other := copy.deepcopy(model), tokenizer, tmp_path / "1", batch, max_tokens=20_000)
    tight = trainer(model, tokenizer, tmp_path / "2", batch, max_tokens=9_000)
    gradients(other, roomy)
    gradients(model, tight)
    assert roomy.computed_tokens == 3 * 4502
    assert tight.computed_tokens < 9_000
    assert roomy.flops < tight.flops


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


def test_a_kl_penalty_leaves_constant_groups_out(moved, tokenizer, tmp_path):
    """A departure from TRL, which takes it of rows without a policy gradient too."""
    rows = make_rows()
    silent = [dataclasses.replace(r, advantage=0.0) for r in rows[:4]]
    everything = make_batch([*silent, *rows[4:]])
    kept = dataclasses.replace(everything, rows=tuple(rows[4:]), constant_groups=1)
    with_them = gradients(moved, trainer(moved, tokenizer, tmp_path / "1", everything, beta=0.1))
    without = gradients(moved, trainer(moved, tokenizer, tmp_path / "2", kept, beta=0.1))
    assert any((grad - without[1][name]).abs().max() > 1e-5 for name, grad in with_them[1].items())


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
        assert size <= max(max_tokens, 2 * len(part[0].prompt_ids)) or len(part) == 1
    assert list(parts([], 10)) == []


@pytest.mark.parametrize("max_tokens", [60, 400, 10_000])
def test_padded_parts_pad_less_than_a_tenth(max_tokens):
    source = random.Random(0)
    lengths = [(source.choice([12, 13, 40, 41, 90]), source.randrange(1, 20)) for _ in range(200)]
    rows = [Row((str(i), "p", 0), i, (1,) * p, (2,) * c, (0.0,) * c, 0.0, 1.0, 1.0) for i, (p, c) in enumerate(lengths)]
    split = list(parts(rows, max_tokens, padded=True))
    assert sorted(r.sample for part in split for r in part) == list(range(200))
    for part in split:
        real = sum(len(r.prompt_ids) + len(r.completion_ids) for r in part)
        computed = len(part) * (max(len(r.prompt_ids) for r in part) + max(len(r.completion_ids) for r in part))
        assert computed - real <= 0.1 * computed
        assert computed <= max_tokens or len(part) == 1
    if max_tokens == 10_000:
        assert len(split) < 40


def test_a_part_with_a_long_prompt_may_grow_to_twice_it():
    """An agent's calls, each prompt the last one's and 50 tokens more: computed three times at most, not n times."""
    history = tuple(range(10, 4010))
    rows = [Row(("a", "p", n), 0, history[: 50 * n], (5, 6), (0.0,) * 2, 0.0, 1.0, 1.0) for n in range(1, 81)]
    split = list(parts(rows, 200))
    computed = sum(max(len(r.prompt_ids) for r in part) + 2 * len(part) for part in split)
    assert computed <= 3 * (4000 + 160)
    assert len(split) < 8
    assert [r for part in split for r in part] == rows


def test_learning_rate_never_starts_at_zero():
    assert rate(0, 10, 4, "constant") == pytest.approx(0.2)
    assert rate(4, 10, 4, "constant") == 1.0
    assert rate(9, 10, 4, "linear") == pytest.approx(1 / 6)
    assert rate(0, 10, 0, "cosine") == 1.0
