"""Sends the requests of concurrent rollouts to a server, each from its own thread.

Knows token requests and a function that completes one; nothing of servers or programs. No rollout waits for another
one's answer. A request is held, for a moment at most, while other rollouts of the run are still at work on theirs: sent
one by one they would set the server to work beside the threads that prepare the others, and on shared cores both lose.
Those that are held go out together. While the server has nothing to do, at the beginning of a run, they are held for as
long as others keep coming.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from colever.engines.generation import TokenRequest
from colever.types import Completion

HOLD = 0.1  # seconds
MOST = 1.0  # seconds, while the server has nothing to do


class DirectSession:
    """``live`` rollouts, all at work when it is made."""

    def __init__(
        self, answer: Callable[[TokenRequest], Completion], live: int, hold: float = HOLD, most: float = MOST
    ) -> None:
        self._answer, self._hold, self._most = answer, hold, max(hold, most)
        self._changed = threading.Condition()
        self._working = live  # rollouts that neither wait nor have ended
        self._away = 0  # requests that the server has
        self._wave = 0  # so many times those that were held went out
        self._came = 0.0  # when the last request came
        self._closed: BaseException | None = None

    def request(self, rollout: object, key: tuple, request: TokenRequest) -> Completion:
        """From a rollout's thread. Raises what ended the session, and what the request raises."""
        with self._changed:
            self._rests()
            self._held()
            if self._closed is not None:
                raise self._closed
            self._away += 1
        try:
            return self._answer(request)
        finally:
            with self._changed:
                self._away -= 1
                self._working += 1

    def finished(self) -> None:
        """One live rollout ended (or its thread has none left)."""
        with self._changed:
            self._rests()

    def run(self) -> None:
        """Nothing: the rollouts' threads ask by themselves."""

    def close(self, error: BaseException) -> None:
        """Refuse further requests with ``error``, and those that are held."""
        with self._changed:
            self._closed = error
            self._release()

    def _held(self) -> None:
        """Until nobody is at work, or it has been long enough; the lock is held but for the waiting."""
        wave, came = self._wave, time.monotonic()
        self._came = came
        while self._working > 0 and self._wave == wave:
            until = came + self._hold if self._away else min(self._came + self._hold, came + self._most)
            left = until - time.monotonic()
            if left <= 0:
                self._release()
                return
            self._changed.wait(left)

    def _release(self) -> None:
        self._wave += 1
        self._changed.notify_all()

    def _rests(self) -> None:
        self._working -= 1
        if self._working <= 0:
            self._release()
