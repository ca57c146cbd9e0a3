"""Files and folders that are there whole or not at all, and JSON with its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colever.errors import StoreError
from colever.process import mark
from colever.types import digest_of, read_json


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with its own checksum, written to a temporary file, flushed, renamed, its folder made. Raises StoreError."""
    make_folder(path.parent)
    value = json.loads(json.dumps(value))  # what a reader will see
    temporary = temporary_of(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"checksum": digest_of(value), "value": value}, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}") from error


def read_sealed(path: Path) -> Any:
    """What ``write_sealed`` wrote. Raises OSError, or ValueError naming the file if it is not what was written."""
    data = read_json(path)
    if not isinstance(data, dict) or "value" not in data or digest_of(data["value"]) != data.get("checksum"):
        raise ValueError(f"{path} differs from its checksum")
    return data["value"]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """With those above it. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be made: {error.strerror}") from error


def temporary_of(path: Path) -> Path:
    """Where this process writes what becomes ``path``; nobody else on any machine writes there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{mark()}.tmp")


def placed(temporary: Path, target: Path) -> bool:
    """Rename a written folder to ``target``; False where there is one, which stays: another process was first."""
    try:
        if target.exists():
            return False
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    sync(target.parent)
    return True


def sync_tree(folder: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
