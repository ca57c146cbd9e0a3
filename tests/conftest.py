"""Shared fixtures: a tiny random checkpoint that is a real one in every other respect."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before torch is loaded: these models gain nothing from threads, and on a busy machine they lose a factor of 20.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Only tests that are marked ``gpu`` see one: the others expect that an engine's own choice is the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def byte_tokenizer():
    """One token per byte, chat markers and ends as special tokens, a plain chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.add_tokens(["[[ ## answer ## ]]", "[[ ## completed ## ]]"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def write_checkpoint(path: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, positions: int = 2048) -> Path:
    """A random Qwen3 checkpoint in ``path``."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        initializer_range=0.2,  # sharp enough that greedy decoding has no ties
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def write_talker(path: Path) -> Path:
    """A checkpoint that answers a field ``answer`` with a random digit, and now and then with an unparsable ``x``."""
    answer, end, digits = "[[ ## answer ## ]]", "<|im_end|>", "0123456789"
    follows = {"\n": {answer: 0.9, "x": 0.1}, answer: dict.fromkeys(digits, 0.1), "x": {end: 1.0}}
    return write_follower(path, follows | {digit: {end: 1.0} for digit in digits})


def write_follower(
    path: Path, follows: dict[str, dict[str, float]], words: tuple[str, ...] = (), positions: int = 2048
) -> Path:
    """A checkpoint in which a token alone decides what follows it, with the given probabilities.

    A Qwen3 whose blocks add nothing: embedding and head are a table. ``words`` become tokens of their own.
    """
    import math

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_checkpoint(path, positions=positions)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    if words:
        tokenizer.add_tokens(list(words))
        tokenizer.save_pretrained(path)
        model.resize_token_embeddings(len(tokenizer))

    def token(text: str) -> int:
        (only,) = tokenizer.encode(text, add_special_tokens=False)
        return only

    model.config.tie_word_embeddings = False
    embedding = torch.zeros_like(model.model.embed_tokens.weight)
    head = torch.full_like(embedding, 0.0)
    for place, (text, after) in enumerate(follows.items()):
        embedding[token(text), place] = 1.0
        head[:, place] = -30.0 / 8  # the last norm makes the one active unit sqrt(64) = 8
        for target, probability in after.items():
            head[token(target), place] = math.log(probability) / 8
    embedding[(embedding == 0).all(1), 60] = 1.0
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight = torch.nn.Parameter(head)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def talker_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that keeps DSPy's answer format most of the time; see ``write_talker``."""
    return write_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Qwen3 and a byte-level tokenizer; text it writes is noise."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def digit_weights(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """Weights of ``tiny_checkpoint`` with which it keeps DSPy's format and picks a digit; see ``teach_digits``."""
    from dspy_parts import teach_digits

    from colever.engines.lm import open_engine

    return teach_digits(open_engine(tiny_checkpoint), tmp_path_factory.mktemp("digits"))


@pytest.fixture
def finetune_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where DSPy's trainers put weights, for one test."""
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path / "finetune"))
    return tmp_path / "finetune"


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with an empty MLflow database: making one takes seconds, copying it none."""
    from colever.tracking import store

    home = tmp_path_factory.mktemp("empty")
    store.open_client(home)
    return home


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path):
    """An engine on ``tiny_checkpoint`` for one file's tests; see ``base_weights``."""
    from colever.engines.lm import open_engine

    return open_engine(tiny_checkpoint)


@pytest.fixture
def base_weights(engine) -> None:
    """Each test begins with the engine's own weights, whatever the one before it trained."""
    from colever.types import Weights

    engine.load(Weights())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """``colever`` with these arguments, in this process: exit status, stdout, stderr."""
    from colever import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["colever", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
