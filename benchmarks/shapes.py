"""Models of a known shape with random weights, so that a benchmark needs no download.

Knows configurations, torch and the seed model's tokenizer; knows nothing of peers or workloads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

SHAPES: dict[str, dict[str, int]] = {
    "1m": {
        "vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 384, "max_position_embeddings": 4096,
    },
    "qwen3-0.6b": {
        "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 40960,
    },
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_options(parser: argparse.ArgumentParser, shape: str | None) -> None:
    """``--device``, ``--dtype`` and ``--shape``."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--shape", default=shape, choices=SHAPES, help="a model of random weights")


def lengths(text: str) -> tuple[int, int]:
    """``180/30`` → prompt and completion tokens."""
    prompt, completion = text.split("/")
    return int(prompt), int(completion)


def random_model(shape: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """A Qwen3 of that shape; the same weights in every call on one device."""
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, pad_token_id=0, eos_token_id=1)
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return model.to(DTYPES[dtype])


def checkpoint(shape: str, dtype: str, device: str, folder: Path) -> Path:
    """The same model as files, with the seed model's tokenizer: text it writes is noise."""
    from colever.engines.lm import seed_path

    random_model(shape, dtype, device).save_pretrained(folder)
    AutoTokenizer.from_pretrained(seed_path()).save_pretrained(folder)
    return folder


def hardware(device: str) -> str:
    """What a figure is of."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"
