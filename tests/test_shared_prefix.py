"""Shared prefixes against one padded row per completion: equal log-probabilities and gradients, at less cost."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from colever.engines import prefix_layout as pl
from colever.engines.branches import supports_branches
from colever.engines.prefix_tree import Group, PrefixTree, Segment, prefix_tree
from colever.optimizers import shared_prefix as sp

PAD = 0


def tiny_model(seed: int = 0, attention: str = "sdpa") -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, tie_word_embeddings=True, attn_implementation=attention, max_position_embeddings=512,
        initializer_range=0.2,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def batch(groups: list[tuple], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows as TRL pads them, in shuffled order, from (prompt length, completion lengths) per group.

    A third number makes a group's prompt begin with as many tokens of the prompt before.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(c for _, lengths, *_ in groups for c in lengths)
    left = max(p for p, *_ in groups)
    ids, mask = [], []
    head = torch.zeros(0, dtype=torch.long)
    for prompt, lengths, *shared in groups:
        kept = head[: shared[0] if shared else 0]
        head = torch.cat([kept, torch.randint(1, 97, (prompt - len(kept),), generator=generator)])
        for length in lengths:
            tail = torch.randint(1, 97, (length,), generator=generator)
            ids.append(torch.cat([torch.zeros(left - prompt), head, tail, torch.zeros(width - length)]).long())
            mask.append(torch.tensor([0] * (left - prompt) + [1] * (prompt + length) + [0] * (width - length)))
    order = torch.randperm(len(ids), generator=generator)
    return torch.stack(ids)[order], torch.stack(mask)[order], width


def row_logprobs(model: Qwen3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, width: int, temperature: float):
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -width - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(2, ids[:, -width:, None])[..., 0] * mask[:, -width:]


def branch_logprobs(model, ids, mask, width, temperature=1.0):
    layout = pl.build_layout(ids, mask, width)
    logprob_N, _ = model(branches=layout)
    return torch.zeros(ids.shape[0] * width).scatter(0, layout.target_N, logprob_N).view(-1, width)


WORKLOADS = {
    "uniform": [(12, [5] * 4), (12, [5] * 4)],
    "ragged": [(12, [5, 1, 9]), (3, [4, 4]), (30, [2]), (12, [7, 6, 5])],
    "one-token prompt": [(1, [3, 5])],
    "long completions": [(4, [40, 2, 33]), (90, [3, 3, 3, 4])],
    "empty completion": [(9, [4, 0, 6]), (5, [0, 0])],
    "no shared prompt": [(7, [3]), (8, [6]), (9, [2])],
    "one preamble": [(40, [5, 6, 7]), (38, [4, 4], 30), (45, [9], 30), (20, [3, 3])],
    "a history that grows": [(20, [4]), (33, [5, 4], 18), (50, [3], 31), (64, [6, 2], 49), (41, [4], 18)],
    "a prompt within another": [(12, [3, 4]), (30, [5], 12), (30, [5, 2], 29)],
    "all but the last token": [(6, [3, 4]), (6, [2], 5), (20, [5]), (20, [5], 19)],
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", WORKLOADS)
def test_logprobs_and_gradients_equal_padded_rows(name, temperature):
    ids, mask, width = batch(WORKLOADS[name])
    model = tiny_model()
    weight = torch.randn(ids.shape[0], width, generator=torch.Generator().manual_seed(3))

    plain = row_logprobs(model, ids, mask, width, temperature)
    (plain * weight).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}

    model.zero_grad()
    sp.add_branches(model, temperature)
    shared = branch_logprobs(model, ids, mask, width)
    (shared * weight).sum().backward()

    assert torch.allclose(shared, plain, atol=2e-5, rtol=1e-5)
    for name_, p in model.named_parameters():
        scale = expected[name_].abs().max().clamp(min=1e-3)
        assert (p.grad - expected[name_]).abs().max() / scale < 1e-5, name_
    del model.forward
    assert "forward" not in model.__dict__


def test_eager_model_gets_its_own_attention_back():
    ids, mask, width = batch(WORKLOADS["ragged"])
    model = tiny_model(attention="eager")
    plain = row_logprobs(model, ids, mask, width, 1.0)
    sp.add_branches(model, 1.0)
    assert torch.allclose(branch_logprobs(model, ids, mask, width), plain, atol=2e-5)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(row_logprobs(model, ids, mask, width, 1.0), plain)


def test_on_cuda_a_padded_row_s_head_computes_completions_alone():
    groups = [Group((0, 1), 10, (3, 5))]
    assert pl.row_work(groups).heads == 2 * 15
    assert pl.row_work(groups, whole_head=False).heads == 8


def test_chunked_head_equals_plain_head(monkeypatch):
    ids, mask, width = batch(WORKLOADS["ragged"])
    model = tiny_model()
    sp.add_branches(model, 0.7)
    plain = branch_logprobs(model, ids, mask, width)
    plain.sum().backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(sp, "PLAIN_LOGITS", 0)
    chunked = branch_logprobs(model, ids, mask, width)
    chunked.sum().backward()
    assert torch.allclose(chunked, plain, atol=1e-5)
    assert torch.allclose(model.lm_head.weight.grad, expected, atol=1e-4)


def test_packed_row_has_no_padding_and_no_repeated_prompt():
    ids, mask, width = batch(WORKLOADS["ragged"])
    layout = pl.build_layout(ids, mask, width)
    assert layout.tokens == sum(p - 1 + sum(lengths) for p, lengths in WORKLOADS["ragged"])
    assert len(layout.label_N) == int(mask[:, -width:].sum())


def test_a_preamble_is_computed_once_and_a_history_grows_linearly():
    ids, mask, width = batch(WORKLOADS["one preamble"])
    assert pl.build_layout(ids, mask, width).tokens == 30 + 9 + 7 + 14 + 19 + (18 + 8 + 9 + 6)
    calls = [(30 + 20 * i, [5], 29 + 20 * (i - 1)) for i in range(1, 30)]
    ids, mask, width = batch([(30, [5]), *calls])
    tree = prefix_tree(ids, mask, width)
    assert tree.tokens == 29 + 29 * 20 + 30 * 5
    assert max(s.stop for s in tree.segments) == 29 + 29 * 20


def test_a_short_common_run_is_not_worth_a_segment():
    ids, mask, width = batch([(20, [3, 3]), (20, [3], 7), (20, [3], 8), (20, [3], 8)])
    assert (
        sorted((s.start, s.stop) for s in prefix_tree(ids, mask, width).segments) == [(0, 8), (0, 19)] + [(8, 19)] * 3
    )


def test_work_is_counted():
    tree = PrefixTree((Segment(-1, 0, 179, 0),), (Group(tuple(range(8)), 180, (30,) * 8, 0),))
    assert pl.branch_work(tree) == pl.Work(179 + 240, 179 * 179 // 2 + 8 * 30 * (179 + 30), 240)
    assert pl.row_work(tree.groups) == pl.Work(8 * 210, 8 * 210 * 210 // 2, 8 * 210)
    ragged = [Group((0, 1), 10, (3, 5))]
    assert pl.row_work(ragged) == pl.Work(30, 2 * 15 * 15, 30)  # a mask hides pairs, it does not save them


def test_sliding_windows_keep_padded_rows():
    model = tiny_model()
    assert supports_branches(model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not supports_branches(model)
