"""Opening a Hugging Face checkpoint: its model, tokenizer, limits and files. Knows nothing of requests or weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from colever.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(source: str, dtype: torch.dtype, device: str, tokenizer: bool = True) -> tuple[Any, Any]:
    try:
        with _quiet():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation="sdpa"
            )
        words = transformers.AutoTokenizer.from_pretrained(source) if tokenizer else None
        model = model.to(device).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"model {source!r} cannot be loaded: {reason}; accepted: 'seed', a folder with a Hugging Face checkpoint,"
            " or a hub name"
        ) from error
    if words is not None and not words.chat_template:
        raise UsageError(f"model {source!r} has no chat template; accepted: a chat or instruct checkpoint")
    return model, words


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def context_length(config: Any) -> int:
    """How many positions prompt and answer may take together."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if odd := kinds - {"full_attention", "sliding_attention"}:
        raise UsageError(f"model has layers of kind {', '.join(sorted(odd))}; accepted: full or sliding attention")
    length = getattr(config, "max_position_embeddings", None) or 2048
    window = getattr(config, "sliding_window", None)
    return min(length, window) if window and "sliding_attention" in kinds else length


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ends.update([value] if isinstance(value, int) else value or ())
    return frozenset(ends)


def checkpoint_files(source: str) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(source, "config.json")
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("*.safetensors"))
