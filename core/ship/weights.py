"""The weights of a bundle as files: which there are, and the digest that they have. Loads none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from colever.errors import StoreError
from colever.ship.guarded import read_json, sha256_of
from colever.types import Weights, digest_of

FULL, ADAPTER, SETTINGS, INDEX = (
    "model.safetensors", "adapter_model.safetensors", "adapter_config.json", "adapters.json",
)  # fmt: skip


def digest_at(folder: Path, kind: Literal["lora", "full"]) -> str:
    """The digest that a folder's weights have by what is in it, as the weight lever makes it. Raises StoreError."""
    if kind == "full":
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise StoreError(f"{folder / FULL} is missing")
        return sha256_of(*files)[:16]
    if not (folder / INDEX).is_file():
        return digest_of(_adapter_parts(folder))
    names = adapter_names(folder)
    return digest_of([[p, _adapter_parts(folder / name)] for p, name in sorted(names.items())])


def adapter_names(folder: Path) -> dict[str, str]:
    """Predictor → the folder of its adapter, beside the index. Raises StoreError."""
    read = read_json(folder / INDEX)
    names = read.get("adapters") if isinstance(read, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise StoreError(f"{folder / INDEX} does not name an adapter per predictor")
    if any(name != Path(name).name or name in ("", ".", "..") for name in names.values()):
        raise StoreError(f"{folder / INDEX} must name folders beside it")
    return names


def copy_weights(weights: Weights, to: Path) -> None:
    """What loading them needs and no more. Raises OSError, StoreError where a file is gone."""
    source = Path(weights.path or "")
    if weights.kind == "full":
        names = [FULL]
    elif (source / INDEX).is_file():
        names = [INDEX, *(f"{n}/{file}" for n in adapter_names(source).values() for file in (ADAPTER, SETTINGS))]
    else:
        names = [ADAPTER, SETTINGS]
    for name in names:
        if not (source / name).is_file():
            raise StoreError(f"weights {weights.digest}: {source / name} is missing")
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(SETTINGS):
            (to / name).write_text(json.dumps(_plain(source / name), indent=2, sort_keys=True), encoding="utf-8")
        else:
            shutil.copyfile(source / name, to / name)


def _plain(file: Path) -> dict[str, Any]:
    """An adapter's settings without this machine's folders."""
    settings: dict[str, Any] = read_json(file)
    base = settings.get("base_model_name_or_path")
    return {**settings, "base_model_name_or_path": None if base and Path(base).exists() else base}


def _adapter_parts(folder: Path) -> list[Any]:
    config, file = read_json(folder / SETTINGS), folder / ADAPTER
    if not file.is_file():
        raise StoreError(f"{file} is missing")
    parts = [sha256_of(file)[:16], config.get("r"), config.get("lora_alpha")]
    return [*parts, "dora"] if config.get("use_dora") else parts
