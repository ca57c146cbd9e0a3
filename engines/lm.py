"""``dspy.LM`` objects on an in-process engine; knows which folder the name ``seed`` stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from colever.errors import UsageError

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine


def seed_path() -> Path:
    """The folder of the shipped seed checkpoint."""
    from importlib.resources import files

    return Path(str(files("colever.engines.seed"))) / "checkpoint"


def open_engine(model: str | Path = "seed", **options: Any) -> TransformersEngine:
    """An engine on ``seed``, a checkpoint folder or a hub name; raises UsageError if it cannot be loaded."""
    from colever.engines.transformers import TransformersEngine

    if str(model) != "seed":
        return TransformersEngine(model, **options)
    path = seed_path()
    if not (path / "config.json").is_file():
        raise UsageError(f"the seed model is not there ({path}); build it with: colever seed build")
    return TransformersEngine(path, name="seed", **options)


def engine_lm(
    model: str | Path | TransformersEngine, *, temperature: float = 0.0, max_tokens: int = 256, **options: Any
) -> dspy.LM:
    """A ``dspy.LM`` that runs in this process, uncached; ``options`` go to the engine."""
    engine = open_engine(model, **options) if isinstance(model, str | Path) else model
    return dspy.LM(
        f"colever/{engine.name}",
        engine=engine,
        cache=False,
        num_retries=0,
        temperature=temperature,
        max_tokens=max_tokens,
    )


def seed_lm(**options: Any) -> dspy.LM:
    """A ``dspy.LM`` on the seed model."""
    return engine_lm("seed", **options)
