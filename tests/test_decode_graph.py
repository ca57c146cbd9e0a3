"""Decoding in steps of fixed shapes, as a GPU replays them, against the plain loop; here without a graph."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colever.engines.base_model import batch_tokens, steady_attention
from colever.engines.decode_graph import Replayer, capturable
from colever.engines.generation import TokenRequest
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """With a tenth of its vocabulary as end tokens: completions of all lengths."""
    folder = tmp_path_factory.mktemp("ending")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 250, 10))}))
    return open_engine(folder)


def requests(engine: TransformersEngine, prompts: int) -> list[TokenRequest]:
    texts = ["Answer as well as you can. " + f"{i} " * (1 + i % 4) for i in range(prompts)]
    ids = [engine.render([{"role": "user", "content": text}]) for text in texts]
    made = [TokenRequest(p, 13, (0.0, 0.7, 1.0)[g % 3], seed=9 * i + g) for i, p in enumerate(ids) for g in range(3)]
    return [replace(r, max_tokens=13 + n % 20) for n, r in enumerate(made)]


@pytest.mark.parametrize("prompts", [1, 2, 7])
def test_they_give_the_same(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, prompts: int) -> None:
    wanted = requests(engine, prompts)
    plain = engine.generate(wanted)
    assert len({len(m.completion_ids) for m in plain}) > 1
    monkeypatch.setattr(engine._generator, "fixed_steps", True)
    for one, other in zip(plain, engine.generate(wanted), strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.finish_reason == other.finish_reason
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_each_prompt_is_kept_once_for_equally_many_rows(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    made = engine._generator._cache
    monkeypatch.setattr(engine._generator, "_cache", lambda *a: (cache := made(*a), groups.append(cache.groups))[0])
    ids = [engine.render([{"role": "user", "content": f"{i} " * (30 + 5 * i)}]) for i in range(3)]
    wanted = [TokenRequest(p, 20, 1.0, seed=9 * i + g) for i, p in enumerate(ids) for g in range(4)]
    for some in (wanted, wanted[:4], wanted[:-1]):  # three prompts, one prompt, and groups of unlike size
        monkeypatch.setattr(engine._generator, "fixed_steps", False)
        plain = engine.generate(some)
        monkeypatch.setattr(engine._generator, "fixed_steps", True)
        for one, other in zip(plain, engine.generate(some), strict=True):
            assert one.completion_ids == other.completion_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    assert groups == [1, 3, 1, 1, 1, 1]


def test_what_was_never_written_does_not_matter(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = requests(engine, 3)
    plain = engine.generate(wanted)
    monkeypatch.setattr(engine._generator, "fixed_steps", True)
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda x, *s, **k: empty(x, *s, **k).fill_(float("nan") if x.is_floating_point() else 7),
    )
    assert [m.completion_ids for m in engine.generate(wanted)] == [m.completion_ids for m in plain]


def test_a_plain_qwen3_can_be_captured(engine: TransformersEngine) -> None:
    assert capturable(engine.model)
    assert not engine._generator.fixed_steps  # on a CPU


def test_attention_s_kernels_are_as_before_afterwards() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with steady_attention():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_cpu_runs_32768_tokens_together(engine: TransformersEngine) -> None:
    assert batch_tokens(engine.model) == 32768


def test_without_a_gpu_a_step_stays_what_it_is() -> None:
    def step() -> None:
        return None

    assert Replayer(torch.device("cpu")).captured(step) is step
