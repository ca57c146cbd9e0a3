"""Whether an error says that memory ran out. Knows what torch, its allocators and Python raise; nothing of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames

from colever.errors import ColeverError

_SAID = ("out of memory", "allocate memory", "std::bad_alloc", "ALLOC_FAILED", "OUT_OF_MEMORY")


def out_of_memory(error: BaseException) -> bool:
    """``MemoryError``, ``torch.OutOfMemoryError``, or the ``RuntimeError`` of torch's allocator on a CPU."""
    if isinstance(error, ColeverError):
        return False
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
    return said or isinstance(error, MemoryError)


@contextmanager
def naming_memory(named: Callable[[str], ColeverError]) -> Iterator[None]:
    """Raises ``named(first line)`` where memory runs out inside, and frees what the frames that failed still held."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        clear_frames(error.__traceback__)
        lines = str(error).splitlines() or [type(error).__name__]
        raise named(lines[0]) from error
