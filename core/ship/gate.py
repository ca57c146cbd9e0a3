"""Who may come in: so many requests at once, so many that wait, and nobody while the program is changed.

Knows counts and time; nothing of requests. All of it is used from one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of a server."""

    body: int = 1 << 20  # bytes of a request
    concurrent: int = 64  # requests that are answered at once: as many share the engine's batches
    queue: int = 256  # further ones that wait; one more is refused
    seconds: float = 60.0  # of a request, from its first byte to its answer


class Busy(Exception):
    """As many wait as may; ``seconds``: when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"as many requests wait as may; ask again in {seconds} s")
        self.seconds = seconds


class Gate:
    """Counts those inside; the others wait in the order in which they came."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._empty: asyncio.Future[None] | None = None  # of who waits for nobody to be inside
        self._mean = 0.5  # seconds that a request is inside, as the last ones had it

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self) -> float:
        """Wait for a place; the time at which it was had, for ``leave``. Raises Busy where nobody may wait any more."""
        if self._closed or self._queue or self.running >= self._limits.concurrent:
            await self._wait()
        else:
            self.running += 1
        return time.monotonic()

    def leave(self, since: float) -> None:
        """The place is free again."""
        self._mean += 0.1 * (time.monotonic() - since - self._mean)
        self.running -= 1
        if self._empty is not None and not self.running and not self._empty.done():
            self._empty.set_result(None)
        self._admit()

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """A block in which nobody is inside: those that come meanwhile wait. Not to be nested."""
        self._closed = True
        try:
            if self.running:
                self._empty = asyncio.get_running_loop().create_future()
                await self._empty
            yield
        finally:
            self._closed, self._empty = False, None
            self._admit()

    async def _wait(self) -> None:
        if len(self._queue) >= self._limits.queue:
            raise Busy(max(1, math.ceil(self._mean * len(self._queue) / self._limits.concurrent)))
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was let in at that moment
                self.leave(time.monotonic())
            else:
                self._queue.remove(place)
            raise

    def _admit(self) -> None:
        while self._queue and not self._closed and self.running < self._limits.concurrent:
            self.running += 1
            self._queue.popleft().set_result(None)
