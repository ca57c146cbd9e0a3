"""A folder that is there whole or not at all, and a manifest of what is in it. Knows files; not what they are for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colever.errors import StoreError, TaskError, UsageError
from colever.process import alive
from colever.ship.guarded import sha256_of
from colever.ship.layout import CODE, MANIFEST, PROGRAM, RUBRIC, ListedFile, Manifest
from colever.types import Candidate


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, renamed to it when the block ends, flushed to disk before.

    Raises UsageError where ``folder`` is there and not empty, StoreError where it cannot be written; whatever ends the
    block early takes the temporary folder with it, and what a killed process left of one goes the next time.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _clear(folder)
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        os.rename(temporary, folder)  # over an empty folder too
        _sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            check_free(folder)
        full = " Free disk space there and run it again." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}.{full}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raises UsageError where ``folder`` is a file, or holds anything."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is there and no folder; accepted: a folder that is empty or not there yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there and not empty; accepted: a folder that is empty or not there yet")


def listed(folder: Path) -> dict[str, ListedFile]:
    """Every file below ``folder`` but the manifest, as the manifest lists it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    paths = {file.relative_to(folder).as_posix(): file for file in files}
    return {
        path: ListedFile(bytes=file.stat().st_size, sha256=sha256_of(file))
        for path, file in paths.items()
        if path != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """With the files that are there now. Raises OSError, ValueError for one that a bundle may not hold."""
    files = {path: file.model_dump() for path, file in listed(folder).items()}
    whole = Manifest.model_validate({**manifest.model_dump(), "files": files})
    write_json(folder / MANIFEST, whole.model_dump(mode="json"))


def write_program(candidate: Candidate, folder: Path) -> None:
    """``program.json``. Raises OSError."""
    write_json(folder / PROGRAM, {"prompts": {name: p.to_json() for name, p in candidate.prompts.items()}})


def write_rubric(text: str, files: Sequence[Path], folder: Path) -> None:
    """``rubric.yaml``, and what it names as ``task_code/NAME.py``. Raises OSError, TaskError."""
    (folder / RUBRIC).write_text(text, encoding="utf-8")
    for file in files:
        to = folder / CODE / file.name
        if to.exists() and to.read_bytes() != file.read_bytes():
            raise TaskError(f"{file} and another file of the task have one name; rename one of them")
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, to)


def write_json(file: Path, value: Any) -> None:
    """In ASCII, which holds half of a surrogate pair too. Raises OSError."""
    file.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove what processes that are gone left beside ``folder``."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and not alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
