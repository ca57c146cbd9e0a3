"""Which model a name stands for here, told by its files. Knows where engines have them."""

from __future__ import annotations

from pathlib import Path

from colever.config import API
from colever.ship.guarded import sha256_of


def model_digest(name: str) -> str:
    """Of a checkpoint's weights (16 hex digits); "" where they are behind an API or not on this machine."""
    from colever.engines.base_model import checkpoint_files
    from colever.engines.lm import seed_path

    if name.startswith(API):
        return ""
    files = checkpoint_files(str(seed_path()) if name == "seed" else name)
    return sha256_of(*(file.resolve() for file in files))[:16] if files else ""


def located(name: str) -> str:
    """A checkpoint's folder by its whole path, since another process starts elsewhere; any other name as it is."""
    return str(Path(name).resolve()) if name != "seed" and not name.startswith(API) and Path(name).exists() else name
