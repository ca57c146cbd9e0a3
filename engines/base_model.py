"""Opening a Hugging Face checkpoint: its model, tokenizer, limits and files. Knows nothing of requests or weights.

With ``quantization="nf4"`` the linear layers are held in 4 bit, as QLoRA has it (arXiv:2305.14314): the NF4 type with
doubly quantized scales, computed with in the engine's dtype. The head, embeddings and norms stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from colever.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "nf4")
MOST_TOKENS = 2**19  # of a small model's: logits and activations take memory too

# bitsandbytes recommends a kernel for CPUs, whenever it is imported, that ``_exact`` switches off.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def open_model(
    source: str, dtype: torch.dtype, device: str, tokenizer: bool = True, quantization: str = "none"
) -> tuple[Any, Any]:
    """The model, ready to answer, and its tokenizer (None unless wanted). Raises UsageError if it cannot be loaded."""
    how = {} if quantization == "none" else {"quantization_config": _nf4(dtype), "device_map": {"": device}}
    try:
        with _quiet():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation="sdpa", **how
            )
        words = transformers.AutoTokenizer.from_pretrained(source) if tokenizer else None
        model = (model if how else model.to(device)).eval()
        _exact(model)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"model {source!r} cannot be loaded: {reason}; accepted: 'seed', a folder with a Hugging Face checkpoint,"
            " or a hub name"
        ) from error
    if words is not None and not words.chat_template:
        raise UsageError(f"model {source!r} has no chat template; accepted: a chat or instruct checkpoint")
    return model, words


def _nf4(dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "engine.quantization=nf4 needs the package bitsandbytes, which is not installed: pip install "
            "'colever[qlora]'; accepted without it: none"
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _exact(model: Any) -> None:
    """Compute as the dtype says in every pass.

    On CPUs with AVX512-BF16, bitsandbytes would repack 4-bit weights at the first answer, compute with them in
    bfloat16, and have no gradient through them from then on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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


@contextmanager
def steady_attention() -> Iterator[None]:
    """Without cuDNN's attention, which torch prefers on some GPUs: it makes a plan for every new shape, and here
    shapes are new in every batch.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def batch_tokens(model: Any) -> int:
    """Tokens that may run together: on a GPU those whose keys and values take a fifth of its memory."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return 32768
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return int(min(MOST_TOKENS, max(32768, torch.cuda.get_device_properties(device).total_memory // (5 * token))))


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
