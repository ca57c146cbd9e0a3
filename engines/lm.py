"""Engines by name, and ``dspy.LM`` objects on them; knows which folder the name ``seed`` stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from colever.config import API, EngineSettings, RemoteSettings
from colever.errors import UsageError

if TYPE_CHECKING:
    from colever.engines.remote import RemoteEngine
    from colever.engines.transformers import TransformersEngine
    from colever.engines.vllm_server import Serving


def seed_path() -> Path:
    """The folder of the shipped seed checkpoint."""
    from importlib.resources import files

    return Path(str(files("colever.engines.seed"))) / "checkpoint"


def open_engine(model: str | Path = "seed", *, serving: Serving | None = None, **options: Any) -> TransformersEngine:
    """An engine on ``seed``, a checkpoint folder or a hub name; raises UsageError if it cannot be loaded.

    ``serving``: a vLLM server samples, which is had in that way.
    """
    if str(model).startswith(API):
        raise UsageError(f"model {model}: behind an API, and no engine in this process; ask it by dspy.LM")
    if "://" in str(model):
        raise UsageError(f"model {model}: an address; a model behind an API is named {API}NAME@{model}")
    kind = _kind(options, serving)
    if str(model) != "seed":
        try:
            return kind(model, **options)
        except UsageError as error:
            raise UsageError(f"{error}{_or_an_api(str(model))}") from error
    path = seed_path()
    if not (path / "config.json").is_file():
        raise UsageError(f"the seed model is not there ({path}); build it with: colever seed build")
    return kind(path, name="seed", **options)


def _kind(options: dict[str, Any], serving: Serving | None) -> type[TransformersEngine]:
    """The engine's class; ``options`` get what it takes besides."""
    if serving is None:
        from colever.engines.transformers import TransformersEngine

        return TransformersEngine
    from colever.engines.vllm_engine import VllmEngine

    options["serving"] = serving
    if serving.inside:
        from colever.engines.vllm_inside_engine import InsideVllmEngine

        return InsideVllmEngine
    return VllmEngine


def open_policy(
    model: str | Path,
    remote: RemoteSettings,
    engine: EngineSettings | None = None,
    *,
    log: Path | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> TransformersEngine | RemoteEngine:
    """What answers the program's calls: see ``open_engine``, or a model behind an API, asked as ``remote`` says.

    ``log`` and ``told`` are a vLLM server's: where its output goes, and who hears of its starts.
    Raises UsageError if there is no such model; an address must answer now.
    """
    engine = engine or EngineSettings()
    if not str(model).startswith(API):
        return open_engine(model, serving=_serving(engine, log, told), **engine.in_process())
    if engine.kind == "vllm":
        raise UsageError(f"model {model}: behind an API, where engine.kind=vllm serves nothing; accepted: transformers")
    from colever.engines.remote import RemoteEngine
    from colever.engines.remote_model import remote_model

    return RemoteEngine(remote_model(str(model), "--model"), remote)


def _serving(engine: EngineSettings, log: Path | None, told: Callable[[str], None]) -> Serving | None:
    if engine.kind != "vllm":
        return None
    from colever.engines.vllm_server import Serving

    inside = engine.vllm_mode == "in_process"
    return Serving(engine.vllm_python, engine.vllm_url, engine.vllm_args, engine.vllm_start, log, told, inside)


def engine_lm(
    model: str | Path | TransformersEngine | RemoteEngine,
    *,
    temperature: float = 0.0,
    max_tokens: int = 256,
    **options: Any,
) -> dspy.LM:
    """A ``dspy.LM`` on an engine, uncached; ``options`` go to one that is opened here, in this process."""
    engine = open_engine(model, **options) if isinstance(model, str | Path) else model
    return dspy.LM(
        f"colever/{engine.name}",
        engine=engine,
        cache=False,
        num_retries=0,
        temperature=temperature,
        max_tokens=max_tokens,
    )


def _or_an_api(model: str) -> str:
    """What else a name with a slash may have meant, where no folder has it."""
    likely = "/" in model and not Path(model).exists() and not model.startswith((".", "/", "~"))
    return f". A model behind an API is named {API}{model}" if likely else ""


def seed_lm(**options: Any) -> dspy.LM:
    """A ``dspy.LM`` on the seed model."""
    return engine_lm("seed", **options)
