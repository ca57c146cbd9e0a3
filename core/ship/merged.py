"""A candidate's weights merged into a whole checkpoint, which needs nothing else. Knows engines; no studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colever.errors import UsageError
from colever.ship.weights import digest_at
from colever.types import Candidate, Weights

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine


def merge(candidate: Candidate, engine: TransformersEngine, to: Path) -> Weights:
    """A whole checkpoint in ``to``: the model with the candidate's weights in it. The engine is of no use afterwards.

    Raises UsageError for weights that no one model holds.
    """
    if engine.quantized:
        raise UsageError("--merge: the engine's base is quantized; accepted: without --merge, the adapter as it is")
    engine.load(candidate.weights)
    if engine.adapters is not None:
        raise UsageError("--merge: each predictor has an adapter of its own; accepted: without --merge, as they are")
    model = engine.adapter.merge_and_unload() if engine.adapter is not None else engine.model
    model.save_pretrained(str(to))
    engine.tokenizer.save_pretrained(str(to), save_jinja_files=False)
    for path in to.iterdir():
        if path.suffix not in (".json", ".safetensors"):
            path.unlink()  # such as a word list that the tokenizer's JSON repeats
    return Weights("full", str(to), digest_at(to, "full"))
