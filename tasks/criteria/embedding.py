"""Texts as vectors: counts of words or characters by hash, or the mean hidden state of a small model."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

MOST_TOKENS = 512  # of a text that a model reads; the rest is cut
_LOADING, _READING = threading.Lock(), threading.Lock()
_loaded: dict[str, tuple[Any, Any]] = {}


def hashed_cosine(one: str, other: str, analyzer: str) -> float:
    """The cosine of the logarithms of counts: words and pairs of them, or runs of 3 to 5 characters (``char_wb``).

    Terms have no weights of their own (idf), which would need a corpus: a hash needs none.
    """
    ranges = {"word": (1, 2), "char_wb": (3, 5)}[analyzer]
    vectorizer = HashingVectorizer(
        analyzer=analyzer, ngram_range=ranges, alternate_sign=False, norm=None, token_pattern=r"(?u)\b\w+\b"
    )
    counts = vectorizer.transform([one, other])
    counts.data = np.log1p(counts.data)
    a, b = counts[0], counts[1]
    size = float(np.sqrt(a.multiply(a).sum() * b.multiply(b).sum()))
    return float(a.multiply(b).sum()) / size if size else 0.0


def embedded_cosine(one: str, other: str, folder: str) -> float:
    """The cosine of two texts' mean hidden states under the checkpoint in ``folder``."""
    return float(np.dot(_embedding(folder, one), _embedding(folder, other)))


@functools.lru_cache(maxsize=4096)
def _embedding(folder: str, text: str) -> np.ndarray:
    """A vector of length 1; of a text without tokens of length 0. Alone, so that it depends on no other text."""
    import torch

    model, tokenizer = _checkpoint(folder)
    with _READING, torch.no_grad():  # a tokenizer is not safe in several threads
        most = min(MOST_TOKENS, getattr(model.config, "max_position_embeddings", MOST_TOKENS))
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
        if not inputs["input_ids"].numel():
            return np.zeros(1)
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state[0]
    mean = hidden.float().mean(0).numpy()
    size = float(np.linalg.norm(mean))
    return mean / size if size > 0 and np.isfinite(size) else np.zeros_like(mean)


def _checkpoint(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer, loaded once; on the CPU, in float32."""
    with _LOADING:
        if folder not in _loaded:
            import torch
            from transformers import AutoModel, AutoTokenizer

            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            _loaded[folder] = model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return _loaded[folder]


def checkpoint_files(folder: str) -> list[Path]:
    """The files that say what a checkpoint is; [] where ``folder`` holds none that can be loaded without unpickling."""
    found = [*sorted(Path(folder).glob("*.safetensors")), *sorted(Path(folder).glob("*.json"))]
    names = {f.name for f in found}
    return found if "config.json" in names and any(n.endswith(".safetensors") for n in names) else []
