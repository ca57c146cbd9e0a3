"""The in-process engine against a plain forward pass and ``generate``: tokens, log-probabilities, weights, threads."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import dspy
import numpy as np
import pytest
import torch
from conformance import EngineConformance
from dspy.utils.exceptions import ContextWindowExceededError
from safetensors.torch import load_file, save_file

from colever.engines.generation import TokenRequest, common_prefix
from colever.engines.lm import engine_lm, open_engine
from colever.engines.prefix_store import PrefixStore
from colever.engines.transformers import TransformersEngine
from colever.errors import StoreError, UsageError
from colever.types import Completion, Weights


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TransformersEngine:
    return open_engine(tiny_checkpoint)


class TestTransformersEngine(EngineConformance):
    """On the fixture above."""


@pytest.fixture(scope="module")
def ending_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """The same model with a fifth of its vocabulary as end tokens: completions of all lengths."""
    folder = tmp_path_factory.mktemp("ending")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 250, 5))}))
    return open_engine(folder)


def prompts(engine: TransformersEngine, count: int) -> list[tuple[int, ...]]:
    text = "Answer the question as well as you can. " + "word " * 3
    return [
        engine.render([{"role": "system", "content": text}, {"role": "user", "content": f"{i} " * (1 + i % 4)}])
        for i in range(count)
    ]


def requests(engine: TransformersEngine, count: int, group: int, **fields: object) -> list[TokenRequest]:
    base = TokenRequest((0,), 12, 1.0)
    return [
        replace(base, prompt_ids=p, seed=1000 * i + g, **fields)  # type: ignore[arg-type]
        for i, p in enumerate(prompts(engine, count))
        for g in range(group)
    ]


def forward_logprobs(engine: TransformersEngine, made: Completion, temperature: float) -> torch.Tensor:
    ids = torch.tensor([[*made.prompt_ids, *made.completion_ids]])
    with torch.no_grad():
        logits = engine.model(ids).logits[0] / (temperature or 1.0)
    start = len(made.prompt_ids) - 1
    rows = logits[start : start + len(made.completion_ids)].log_softmax(-1)
    return rows.gather(1, torch.tensor(made.completion_ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probabilities_agree_with_a_plain_forward_pass(engine: TransformersEngine, temperature: float) -> None:
    for made in engine.generate(requests(engine, 5, 3, temperature=temperature)):
        torch.testing.assert_close(
            torch.tensor(made.logprobs), forward_logprobs(engine, made, temperature), atol=1e-4, rtol=0
        )


def test_greedy_equals_generate_of_transformers(engine: TransformersEngine) -> None:
    for made in engine.generate(requests(engine, 4, 1, temperature=0.0, max_tokens=20)):
        ids = torch.tensor([made.prompt_ids])
        want = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        assert list(made.completion_ids) == want[0, ids.shape[1] :].tolist()


def test_a_padded_batch_equals_single_runs(ending_engine: TransformersEngine) -> None:
    wanted = requests(ending_engine, 7, 3, max_tokens=30)
    together = ending_engine.generate(wanted)
    assert len({len(m.completion_ids) for m in together}) > 3  # rows leave at different times
    for request, made in zip(wanted, together, strict=True):
        (alone,) = ending_engine.generate([request])
        assert alone.completion_ids == made.completion_ids
        torch.testing.assert_close(torch.tensor(alone.logprobs), torch.tensor(made.logprobs), atol=1e-5, rtol=0)


def test_small_batches_and_other_orders_give_the_same(tiny_checkpoint: Path, ending_engine: TransformersEngine) -> None:
    small = TransformersEngine(ending_engine.source, max_batch_tokens=1200)
    wanted = requests(ending_engine, 6, 4, max_tokens=25)
    want = {m.completion_ids for m in ending_engine.generate(wanted)}
    assert {m.completion_ids for m in small.generate(wanted[::-1])} == want


def test_samples_of_a_group_differ_and_repeat_with_their_seed(engine: TransformersEngine) -> None:
    wanted = requests(engine, 1, 8)
    first, second = engine.generate(wanted), engine.generate(wanted)
    assert len({m.completion_ids for m in first}) == 8
    assert first == second


def test_a_row_ends_at_its_own_limit_or_at_an_end_token(ending_engine: TransformersEngine) -> None:
    wanted = [replace(r, max_tokens=3 + i % 5) for i, r in enumerate(requests(ending_engine, 6, 4))]
    ends = ending_engine.end_ids
    for request, made in zip(wanted, ending_engine.generate(wanted), strict=True):
        assert 1 <= len(made.completion_ids) == len(made.logprobs) <= request.max_tokens
        assert not any(i in ends for i in made.completion_ids[:-1])
        stopped = made.completion_ids[-1] in ends
        assert made.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(made.completion_ids) == request.max_tokens
        body = made.completion_ids[: len(made.completion_ids) - stopped]
        assert made.text == ending_engine.tokenizer.decode(list(body))


def test_a_stop_string_ends_a_row_and_is_cut_from_its_text(engine: TransformersEngine) -> None:
    wanted = requests(engine, 2, 4, max_tokens=30)
    free = engine.generate(wanted)
    stop = next(c for c in free[0].text[3:] if c.isascii())  # noise also holds broken UTF-8
    made = engine.generate([replace(r, stop=(stop,)) for r in wanted])
    for loose, tight in zip(free, made, strict=True):
        cut = loose.text.find(stop)
        assert tight.completion_ids == loose.completion_ids[: len(tight.completion_ids)]
        assert tight.finish_reason == ("stop" if cut >= 0 else loose.finish_reason)
        assert stop not in tight.text


def test_added_tokens_decode_exactly(engine: TransformersEngine) -> None:
    text = "[[ ## answer ## ]]\n4  2\n\n[[ ## completed ## ]]\n"
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) < 15
    assert engine._decode(ids) == text


def test_each_distinct_prompt_is_computed_once(engine: TransformersEngine) -> None:
    wanted = requests(engine, 4, 8, max_tokens=2)
    distinct = {r.prompt_ids for r in wanted}
    shared = common_prefix(sorted(distinct))
    assert shared > 20
    before = engine.meter
    engine.generate(wanted)
    spent = engine.meter - before
    assert spent.prompt_tokens <= shared + sum(len(p) - shared for p in distinct)
    assert spent.prompt_tokens >= len({p[: i + 1] for p in distinct for i in range(len(p))})
    assert spent.completion_tokens == 64


def growing(engine: TransformersEngine, call: int) -> list[TokenRequest]:
    """An agent's ``call``-th calls in six rollouts: the history so far, then the same closing words."""
    histories = ["".join(f"step {i}: looked at {row}, saw {i * row}. " for i in range(call)) for row in range(6)]
    prompts = [engine.render([{"role": "user", "content": f"Find it. {h}Go on."}]) for h in histories]
    return [TokenRequest(prompt, 6, 1.0, seed=10 * call + row) for row, prompt in enumerate(prompts)]


def test_a_session_computes_a_growing_history_once(engine: TransformersEngine) -> None:
    made, alone, spent = [], [], []
    with engine.session(1) as session:
        for call in range(8):
            before = engine.meter.prompt_tokens
            made += session._complete(growing(engine, call))
            spent.append(engine.meter.prompt_tokens - before)
    for call in range(8):
        alone += engine.generate(growing(engine, call))
    for one, other in zip(made, alone, strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)
    lengths = [sum(len(r.prompt_ids) for r in growing(engine, call)) for call in range(8)]
    assert lengths[-1] > 3 * lengths[1]
    assert max(spent[2:]) < 1.2 * min(spent[2:])  # what is new in a call, however long the history is


def test_a_store_forgets_what_does_not_fit_and_what_other_weights_made(engine: TransformersEngine) -> None:
    store = PrefixStore(max_tokens=300)
    for call in range(12):
        made = engine.generate(growing(engine, call), {None: store})
        assert store.used <= 300
        for one, other in zip(made, engine.generate(growing(engine, call)), strict=True):
            assert one.completion_ids == other.completion_ids
    prompt = np.asarray(growing(engine, 11)[0].prompt_ids)
    kept = PrefixStore(max_tokens=10**6)
    engine.generate(growing(engine, 11), {None: kept})
    assert len(kept.find(prompt)) == len(prompt) - 1
    kept.begin("other weights")
    assert len(kept.find(prompt)) == 0


def test_flops_are_two_per_weight_and_token_and_four_per_pair(engine: TransformersEngine) -> None:
    (request,) = requests(engine, 1, 1, max_tokens=5)
    before = engine.meter
    engine.generate([request])
    config, length = engine.model.config, len(request.prompt_ids)
    layer = config.hidden_size * (4 + 2 * 2 + 4) * 16 + 3 * config.hidden_size * config.intermediate_size
    pairs = sum(range(1, length + 5))
    want = 2 * 2 * layer * (length + 4) + 4 * 2 * 64 * pairs + 2 * config.vocab_size * config.hidden_size * 5
    assert (engine.meter - before).flops == want


def test_common_prefix() -> None:
    long = tuple(range(20))
    assert common_prefix([long, (*long, 1), (*long, 2)]) == 19  # each keeps a token of its own
    assert common_prefix([long]) == 0
    assert common_prefix([(1, 2, 3), (1, 2, 4)]) == 0  # too short to be worth it
    assert common_prefix([(5, *long), (6, *long)]) == 0


def test_the_context_cuts_the_answer_and_refuses_a_prompt_that_does_not_fit(tmp_path: Path) -> None:
    from conftest import write_checkpoint

    lm = engine_lm(write_checkpoint(tmp_path, positions=64), max_tokens=500)
    prompt = lm.engine.render([{"role": "user", "content": "hi"}])
    made = lm.engine.generate([TokenRequest(prompt, 500, 1.0, seed=seed) for seed in range(16)])
    assert max(len(m.completion_ids) for m in made) == 64 - len(prompt)
    with pytest.raises(ContextWindowExceededError, match="64"):
        lm("word " * 40)


# --- DSPy's side ---------------------------------------------------------------------------------


def test_a_bare_lm_call_works_and_repeats_with_a_seed(engine: TransformersEngine) -> None:
    lm = engine_lm(engine, temperature=1.0, max_tokens=10)
    assert lm("hi", seed=3) == lm("hi", seed=3)
    assert lm("hi", seed=3) != lm("hi", seed=4)
    assert lm("hi") != lm("hi")  # no cache, and a seed of its own for each call


def test_concurrent_bare_calls_share_a_batch(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = engine._generator.run
    monkeypatch.setattr(engine._generator, "run", lambda r, store: (sizes.append(len(r)), run(r, store))[1])
    lm, answers = engine_lm(engine, max_tokens=8), {}
    threads = [threading.Thread(target=lambda i=i: answers.update({i: lm(f"say {i}")})) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes) == 12
    assert len(sizes) < 12
    assert all(answers[i] == lm(f"say {i}") for i in range(12))


def test_a_copied_program_shares_the_engine(engine: TransformersEngine) -> None:
    program = dspy.Predict("question -> answer")
    program.lm = engine_lm(engine)
    assert program.deepcopy().lm.engine is engine
    assert copy.copy(engine) is engine


def test_an_lm_is_saved_by_the_name_of_its_model(engine: TransformersEngine, tiny_checkpoint: Path) -> None:
    state = engine_lm(engine, max_tokens=9).dump_state()
    back = dspy.LM.load_state(state, allow_custom_lm_class=True)
    assert back.engine.source == str(tiny_checkpoint)
    with torch.no_grad():
        back.engine.model.lm_head.weight.zero_()  # as another program's training would
    back.engine.touched()
    assert back("hi") == engine_lm(engine, max_tokens=9)("hi")


@pytest.mark.parametrize("options", [{"dtype": "int3"}, {"device": "abacus"}])
def test_bad_options_are_named(tiny_checkpoint: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options.values()))):
        TransformersEngine(tiny_checkpoint, **options)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accepted: 'seed'"):
        open_engine(tmp_path / "nothing")


# --- weights -------------------------------------------------------------------------------------


@pytest.fixture
def own_engine(tiny_checkpoint: Path) -> TransformersEngine:
    return open_engine(tiny_checkpoint)


def state(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def full(tiny_checkpoint: Path, tmp_path: Path) -> Weights:
    tensors = {k: v + 0.05 for k, v in load_file(tiny_checkpoint / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return Weights("full", str(tmp_path), "full-1")


@pytest.fixture
def lora(tiny_checkpoint: Path, tmp_path: Path) -> Weights:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config).save_pretrained(tmp_path / "lora")
    return Weights("lora", str(tmp_path / "lora"), "lora-1")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_weights_are_swapped_in_place_and_base_comes_back_bit_for_bit(
    own_engine: TransformersEngine, kind: str, request: pytest.FixtureRequest
) -> None:
    weights: Weights = request.getfixturevalue(kind)
    wanted = requests(own_engine, 2, 2)
    model, before, base = own_engine.model, state(own_engine), own_engine.generate(wanted)
    own_engine.load(weights)
    assert own_engine.version == weights.digest
    assert own_engine.model is model
    changed = own_engine.generate(wanted)
    assert [m.completion_ids for m in changed] != [m.completion_ids for m in base]
    assert {m.version for m in changed} == {weights.digest}
    for made in changed:
        torch.testing.assert_close(
            torch.tensor(made.logprobs), forward_logprobs(own_engine, made, 1.0), atol=1e-4, rtol=0
        )
    own_engine.load(Weights())
    assert own_engine.version == "base"
    assert same(before, state(own_engine))
    assert own_engine.generate(wanted) == base
    own_engine.load(weights)
    assert own_engine.generate(wanted) == changed


def test_from_lora_to_full_and_to_another_lora(
    own_engine: TransformersEngine, full: Weights, lora: Weights, tmp_path: Path
) -> None:
    shutil.copytree(lora.path, tmp_path / "other")
    tensors = {k: v * 2 for k, v in load_file(tmp_path / "other" / "adapter_model.safetensors").items()}
    save_file(tensors, tmp_path / "other" / "adapter_model.safetensors", metadata={"format": "pt"})
    other = Weights("lora", str(tmp_path / "other"), "lora-2")
    wanted = requests(own_engine, 2, 2)
    made = {}
    for weights in (lora, full, other, Weights(), lora, other, full):
        own_engine.load(weights)
        ids = [m.completion_ids for m in own_engine.generate(wanted)]
        assert made.setdefault(weights.digest, ids) == ids
    assert len({str(v) for v in made.values()}) == 4


def test_a_change_in_place_makes_a_new_version_and_is_undone_by_the_next_load(own_engine: TransformersEngine) -> None:
    before = state(own_engine)
    seen = [own_engine.version]
    for _ in range(2):
        with torch.no_grad():
            own_engine.model.model.norm.weight += 0.5
        own_engine.touched()
        seen.append(own_engine.version)
    assert len(set(seen)) == 3
    own_engine.load(Weights())
    assert own_engine.version == "base"
    assert same(before, state(own_engine))


def test_lora_layers_that_a_trainer_put_in_are_taken_out(own_engine: TransformersEngine) -> None:
    from peft import LoraConfig, get_peft_model

    before = state(own_engine)
    get_peft_model(own_engine.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    own_engine.touched()
    own_engine.load(Weights())
    assert same(before, state(own_engine))
    assert all(p.requires_grad for p in own_engine.model.parameters())


def test_missing_or_wrong_weights_leave_the_engine_as_it_was(
    own_engine: TransformersEngine, tmp_path: Path, full: Weights
) -> None:
    before = state(own_engine)
    with pytest.raises(StoreError, match="missing"):
        own_engine.load(Weights("full", str(tmp_path / "gone"), "x"))
    assert own_engine.version == "base"
    assert same(before, state(own_engine))
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(StoreError, match="does not fit"):
        own_engine.load(full)
    own_engine.load(Weights())
    assert same(before, state(own_engine))


def test_a_quantized_engine_says_what_it_needs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="quantization 'int3'; accepted: none, nf4"):
        open_engine(tiny_checkpoint, quantization="int3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"engine\.quantization=nf4 needs .*bitsandbytes.*colever\[qlora\]"):
        open_engine(tiny_checkpoint, quantization="nf4")


def test_the_digest_is_of_content(tiny_checkpoint: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    from conftest import write_checkpoint

    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert open_engine(tmp_path / "copy").digest == engine.digest
    assert open_engine(write_checkpoint(tmp_path / "other", seed=1)).digest != engine.digest
    assert open_engine(tiny_checkpoint, dtype="bfloat16").digest != engine.digest
