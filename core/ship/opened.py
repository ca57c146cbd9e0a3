"""A bundle's folder → what it says, once every file is the one that its manifest lists. Runs nothing of it.

Knows files, records and PEFT's settings as data; no tasks, no engines. A bundle may come from anywhere: what is not
exactly a bundle is refused with a StoreError that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colever.errors import StoreError
from colever.ship.guarded import check_safetensors, files_in, parse_json, read_bytes, read_json, sha256_of
from colever.ship.layout import MANIFEST, MODEL, PROGRAM, WEIGHTS, Manifest, Program
from colever.types import Candidate, Weights

MOST_MANIFEST = 4 << 20  # bytes
MOST_RANK = 4096
# Of an adapter's settings, what may be other than PEFT's default, and of which type.
ADAPTER_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "r": (int,), "lora_alpha": (int, float), "lora_dropout": (int, float), "target_modules": (list,),
    "use_dora": (bool,), "use_rslora": (bool,), "fan_in_fan_out": (bool,), "inference_mode": (bool,),
    "base_model_name_or_path": (str, type(None)), "task_type": (str,), "peft_version": (str,), "peft_type": (str,),
    "init_lora_weights": (bool,),
}  # fmt: skip
# Of a checkpoint's settings, what would run code from elsewhere, or load more of it.
FORBIDDEN = ("auto_map", "custom_pipelines", "attn_implementation", "quantization_config", "experts_implementation")


@dataclass(frozen=True)
class Bundle:
    """A checked one: ``candidate`` with its weights where they are."""

    folder: Path
    manifest: Manifest
    candidate: Candidate

    @property
    def checkpoint(self) -> Path | None:
        """The whole checkpoint in it, where it has one."""
        return self.folder / MODEL if self.manifest.weights.path == MODEL else None


def open_bundle(folder: Path | str, *, own: bool = False) -> Bundle:
    """What a folder holds, checked. ``own``: it may refer to large weights outside, as what MLflow registered does.

    Raises StoreError for anything that is not exactly a bundle.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise StoreError(f"{folder} is no folder; accepted: a bundle, as colever export writes it")
    manifest = read_manifest(root)
    _check_files(root, manifest)
    candidate = Candidate(
        {name: prompt.made() for name, prompt in _validated(root / PROGRAM, Program).prompts.items()},
        _weights(root, manifest, own),
    )
    if candidate.digest != manifest.candidate:
        raise StoreError(f"{root}: prompts and weights are not those of the candidate that {MANIFEST} names")
    return Bundle(root, manifest, candidate)


def read_manifest(root: Path) -> Manifest:
    """Checked by itself alone."""
    if not (root / MANIFEST).is_file():
        raise StoreError(f"{root} has no {MANIFEST}; accepted: a bundle, as colever export writes it")
    return _validated(root / MANIFEST, Manifest, MOST_MANIFEST)


def _validated(file: Path, kind: type[Any], most: int | None = None) -> Any:
    try:
        return kind.model_validate(parse_json(read_bytes(file, most)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        raise StoreError(f"{file}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise StoreError(f"{file}: {error}") from None


def _check_files(root: Path, manifest: Manifest) -> None:
    """Exactly the listed files, of the listed sizes and digests, and what is loaded of them of the right form."""
    there = files_in(root)
    there.pop(MANIFEST, None)
    if extra := sorted(set(there) - set(manifest.files)):
        raise StoreError(f"{root / extra[0]} is not in {MANIFEST}")
    if missing := sorted(set(manifest.files) - set(there)):
        raise StoreError(f"{root / missing[0]} is missing")
    for path, file in manifest.files.items():
        if there[path] != file.bytes:
            raise StoreError(f"{root / path} has {there[path]:,} bytes; {MANIFEST} says {file.bytes:,}")
        if path.endswith(".safetensors"):
            check_safetensors(root / path)
        if sha256_of(root / path) != file.sha256:
            raise StoreError(f"{root / path} is not the file that {MANIFEST} lists: its digest is another")
        if path.startswith(f"{WEIGHTS}/") and path.endswith("adapter_config.json"):
            check_adapter(root / path)
        elif path.startswith(f"{MODEL}/") and path.endswith(".json"):
            _check_settings(root / path, read_json(root / path))


def _weights(root: Path, manifest: Manifest, own: bool) -> Weights:
    """With the digest that the files really have: what is loaded is found again by it."""
    from colever.ship.weights import digest_at

    said = manifest.weights
    if said.kind == "base":
        return Weights()
    if said.path in (WEIGHTS, MODEL):
        folder = root / said.path
    elif own and said.path and Path(said.path).is_absolute():
        folder = Path(said.path)
        if not folder.is_dir():
            raise StoreError(f"the winner's weights were too large to be copied, and {folder} is gone")
        return Weights(said.kind, str(folder), said.digest)
    else:
        raise StoreError(f"{root / MANIFEST}: weights.path is {str(said.path)[:80]!r}; accepted: {WEIGHTS}, {MODEL}")
    found = digest_at(folder, said.kind)
    if found != said.digest:
        raise StoreError(f"{folder}: the weights are not those that {MANIFEST} names")
    return Weights(said.kind, str(folder), found)


def check_adapter(file: Path) -> None:
    """Raises StoreError for settings of an adapter with which PEFT would do more than fill in matrices."""
    from peft import LoraConfig

    plain, given = _as_json(LoraConfig().to_dict()), read_json(file)
    if not isinstance(given, dict):
        raise StoreError(f"{file}: a {type(given).__name__}; accepted: an adapter's settings")
    for key, value in given.items():
        kinds = ADAPTER_SETTINGS.get(key)
        if kinds is None and value != plain.get(key):
            raise StoreError(f"{file}: {key[:60]!r} is {str(value)[:60]!r}; accepted: PEFT's default")
        if kinds is not None and (type(value) not in kinds):
            raise StoreError(f"{file}: {key!r} is a {type(value).__name__}")
    if given.get("peft_type") != "LORA" or not 1 <= given.get("r", 0) <= MOST_RANK:
        raise StoreError(f"{file}: accepted: a LoRA adapter of rank 1 to {MOST_RANK}")
    if not all(isinstance(name, str) for name in given.get("target_modules", ())):
        raise StoreError(f"{file}: target_modules: accepted: names")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    return [_as_json(part) for part in value] if isinstance(value, set | tuple | list) else value


def _check_settings(file: Path, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if any(word in key for word in FORBIDDEN):
                raise StoreError(f"{file}: {key[:60]!r} is not accepted in a bundle")
            _check_settings(file, part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            _check_settings(file, part)
