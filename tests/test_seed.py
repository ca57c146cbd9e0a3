"""The seed model: its mixture says what it claims, its build resumes exactly, and the shipped checkpoint is whole."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from colever.engines.lm import seed_path
from colever.engines.seed import mixture, words
from colever.engines.seed.build import STATE, Recipe, _copy, _look_up, _pad, _publish, build
from colever.engines.seed.tokenizer import ASSISTANT, END, PAD, USER, train_tokenizer
from colever.errors import UsageError

TINY = Recipe(
    steps=4, copying=1, broad_from=2, looking_up=1, looked_up=3, conversations=4, copies=1, lookups=2, warmup=1,
    vocabulary=400, tokenizer_conversations=40, hidden=32, layers=1, intermediate=32,
)  # fmt: skip


def test_both_readings_of_a_chain() -> None:
    assert mixture.evaluate([2, 3, 4], ["+", "*"], True) == (["3 * 4 = 12", "2 + 12 = 14"], 14)
    assert mixture.evaluate([2, 3, 4], ["+", "*"], False) == (["2 + 3 = 5", "5 * 4 = 20"], 20)


@pytest.mark.parametrize("broad", [False, True])
def test_every_conversation_reads_back_through_dspys_adapter(broad: bool) -> None:
    import dspy

    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    for i in range(60):
        drawn = mixture.sample(Random(i), broad)
        outputs = {n: (kind, dspy.OutputField()) for n, kind, out in drawn.fields if out}
        inputs = {n: (kind, dspy.InputField()) for n, kind, out in drawn.fields if not out}
        signature = dspy.Signature({**inputs, **outputs}, drawn.instructions)
        answer = adapter.parse(signature, mixture.messages(drawn)[-1]["content"])
        assert answer == {name: drawn.turns[-1][name] for name in outputs}


def test_wordings_decide_the_style() -> None:
    for i in range(400):
        drawn = mixture.arithmetic(Random(i), 1, True)
        asked = {
            s
            for s in ("steps", "direct")
            for t in words.COMPOSED[s]
            for w in words.expand(t)
            if w in drawn.instructions
        }
        if len(asked) == 1:
            work = list(drawn.turns[0].values())[1]
            assert ("=" in work) == (asked == {"steps"}), drawn


def test_composed_wordings_are_what_templates_stand_for() -> None:
    assert words.expand("[a|b] c[| d].") == ["a c.", "a c d.", "b c.", "b c d."]
    for style, templates in words.COMPOSED.items():
        known = {w for t in templates for w in words.expand(t)}
        assert {words.compose(Random(i), style) for i in range(50)} <= known


def test_tokenizer_is_exact_and_splits_digits() -> None:
    texts = [m["content"] for i in range(60) for m in mixture.messages(mixture.sample(Random(i)))]
    tokenizer = train_tokenizer(texts, 600)
    for i in range(40):
        chat = mixture.messages(mixture.sample(Random(1000 + i), True))
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert tokenizer.decode(tokenizer.apply_chat_template(chat, return_dict=False)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1024")) == ["1", "0", "2", "4"]


def test_random_tokens_are_copied_whole_or_pair_by_pair() -> None:
    texts = [m["content"] for i in range(60) for m in mixture.messages(mixture.sample(Random(i)))]
    tokenizer = train_tokenizer(texts, 600)
    whole = 0
    for i in range(100):
        row = _copy(Random(i), tokenizer)
        pad, start, end = tokenizer.convert_tokens_to_ids([PAD, ASSISTANT, END])
        ids, mask = _pad([row], pad, start, end)
        given, answer = row[3 : row.index(end, 3)], ids[mask].tolist()[:-1]
        whole += answer == given
        pairs = [sorted(zip(t[::2], t[1::2], strict=True)) for t in (given, answer) if len(t) % 2 == 0]
        assert answer == given or pairs[0] == pairs[1]
    assert 30 < whole < 80


def test_random_tokens_are_looked_up_in_one_book() -> None:
    texts = [m["content"] for i in range(60) for m in mixture.messages(mixture.sample(Random(i)))]
    tokenizer = train_tokenizer(texts, 600)
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    for i in range(60):
        row, book, turns = _look_up(Random(i), tokenizer), {}, 0
        while user in row:
            row = row[row.index(user) :]
            asked, answer = row[: row.index(end)], row[row.index(assistant) : row.index(end, row.index(assistant))]
            assert book.setdefault(tuple(asked), answer) == answer
            row, turns = row[len(asked) :], turns + 1
        assert 1 <= len(book) <= min(6, turns)


def test_a_code_is_two_tokens_wherever_it_stands() -> None:
    texts = [m["content"] for i in range(60) for m in mixture.messages(mixture.sample(Random(i)))]
    tokenizer = train_tokenizer(texts, 600)
    for text in ("K3", "\nK3", "= K3,", "['K3'"):
        assert {"K", "3"} <= set(tokenizer.convert_ids_to_tokens(tokenizer.encode(text)))


def test_mapping_quotes_a_line_of_one_book() -> None:
    quoted = 0
    for i in range(300):
        drawn = mixture.mapping(Random(i), 1 + i % 3, bool(i % 2))
        (key, _, _), *line, (out, _, _) = drawn.fields
        pairs = {(t[key], t[out]) for t in drawn.turns}
        assert len({k for k, _ in pairs}) == len(pairs) == len({c for _, c in pairs})
        for turn in drawn.turns:
            for name, _, _ in line:
                assert turn[name] in {pair.format(k=turn[key], c=turn[out]) for pair in words.PAIRS}
        quoted += bool(line)
    assert 180 < quoted < 240


def test_recall_answers_every_key_from_one_book() -> None:
    for i in range(200):
        drawn = mixture.recall(Random(i), 3, bool(i % 2))
        (key, _, _), (out, _, _) = drawn.fields
        pairs = {p for t in drawn.turns for p in zip(t[key].split(), t[out].split(), strict=True)}
        assert len({k for k, _ in pairs}) == len(pairs) == len({c for _, c in pairs})


def test_loss_is_on_answers_alone() -> None:
    pad, start, end, system, user = 0, 4, 1, 2, 3
    row = [system, 9, end, user, 9, end, start, 7, 7, end, user, 8, end, start, 6, end]
    ids, mask = _pad([row, row[:10]], pad, start, end)
    assert ids[0][mask[0]].tolist() == [7, 7, end, 6, end]
    assert ids[1][mask[1]].tolist() == [7, 7, end]


def test_an_interrupted_build_ends_with_the_same_weights(tmp_path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(whole, TINY, device="cpu")

    def stop(step: int, *_: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(parts, TINY, device="cpu", on_step=stop, save_every=1)
    assert (parts / STATE).exists()
    with pytest.raises(UsageError, match="another recipe"):
        build(parts, replace(TINY, steps=9), device="cpu")
    card = build(parts, TINY, device="cpu")
    assert card["recipe"]["steps"] == 4
    assert not (parts / STATE).exists()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_model_is_not_lost_unasked(tmp_path) -> None:
    build(tmp_path, TINY, device="cpu")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = replace(TINY, seed=1)
    with pytest.raises(UsageError, match="holds a finished model; accepted: another folder as --out, or --replace"):
        build(tmp_path, other, device="cpu")

    def stop(*_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, other, device="cpu", on_step=stop, replace_finished=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    card = build(tmp_path, other, device="cpu", replace_finished=True)
    assert json.loads((tmp_path / "card.json").read_text()) == card != json.loads(before["card.json"])
    assert (tmp_path / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert {file.name for file in tmp_path.iterdir()} == set(before)


def test_a_model_that_was_half_written_replaces_nothing(tmp_path) -> None:
    class Interrupted:
        generation_config = SimpleNamespace()

        def save_pretrained(self, folder) -> None:
            (folder / "model.safetensors").write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "model.safetensors").write_text("whole")
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / STATE).write_text("state")
    with pytest.raises(KeyboardInterrupt):
        _publish(tmp_path, Interrupted(), SimpleNamespace(eos_token_id=1, pad_token_id=0), {})
    assert (tmp_path / "model.safetensors").read_text() == "whole"
    assert (tmp_path / "card.json").exists()
    assert (tmp_path / STATE).exists()


def test_what_a_build_cannot_use_is_said_before_it_starts(tmp_path) -> None:
    with pytest.raises(UsageError, match="--device 'tpu'; accepted here: auto, cpu"):
        build(tmp_path / "new", TINY, device="tpu")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out .*file: cannot be made: File exists; accepted: a folder"):
        build(tmp_path / "file", TINY, device="cpu")


def test_the_shipped_checkpoint() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = seed_path()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8 * 2**20
    assert 0.5e6 < model.num_parameters() < 1.5e6
    assert model.config.model_type == "qwen3"
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert tokenizer.convert_tokens_to_ids([ASSISTANT, END]) == [4, tokenizer.eos_token_id]
    assert json.loads((folder / "card.json").read_text())["recipe"] == json.loads(json.dumps(asdict(Recipe())))
