"""Files of a pull that cannot be written: which, where, what to do. Knows paths and errors; not what is written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colever.engines.memory import out_of_memory
from colever.errors import ColeverError, LeverError

FULL = {errno.ENOSPC, errno.EDQUOT}
ALMOST_NOTHING = 1 << 20  # bytes


@contextmanager
def writing(what: str, path: Path, partial: Path | None = None) -> Iterator[None]:
    """Around what writes to ``path``. Raises LeverError where that fails, ``partial`` (or ``path``) removed."""
    from safetensors import SafetensorError

    partial = path if partial is None else partial
    try:
        yield
    except ColeverError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        told = _told(error, path)
        _remove(partial)
        if out_of_memory(error):
            raise
        raise LeverError(f"{what} cannot be written to {path}: {told} and run the same again") from error


def _told(error: BaseException, path: Path) -> str:
    """What is wrong and what to try: torch.save says no more of a full disk than a place in its own code."""
    there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    causes = [error]
    while causes[-1].__context__ is not None:
        causes.append(causes[-1].__context__)
    numbers = {e.errno for e in causes if isinstance(e, OSError)}
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if numbers & FULL or "No space left" in str(error) or free < ALMOST_NOTHING:
        return f"the disk is full, {free / 2**20:,.1f} MB are free ({said}). Free disk space at {path.parent}"
    return f"{said}. Mend that"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
