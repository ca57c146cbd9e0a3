"""Sends the requests of concurrent rollouts to a server, each from its own thread.

Knows token requests and a function that completes one; nothing of servers or programs. No rollout waits for another
one's answer. A request is held, for a moment at most, while other rollouts of the run are still at work on theirs: sent
one by one they would set the server to work beside the threads that prepare the others, and on shared cores both lose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from colever.engines.generation import TokenRequest
from colever.types import Completion

HOLD = 0.1  # seconds


class DirectSession:
    """``live`` rollouts, all at work when it is made."""

    def __init__(self, answer: Callable[[TokenRequest], Completion], live: int, hold: float = HOLD) -> None:
        self._answer, self._hold = answer, hold
        self._changed = threading.Condition()
        self._working = live  # rollouts that neither wait nor have ended
        self._wave = 0  # so many times nobody was at work
        self._closed: BaseException | None = None

    def request(self, rollout: object, key: tuple, request: TokenRequest) -> Completion:
        """From a rollout's thread. Raises what ended the session, and what the request raises."""
        with self._changed:
            self._rests()
            wave = self._wave
            if self._working > 0:
                self._changed.wait_for(lambda: self._wave != wave, self._hold)
            if self._closed is not None:
                raise self._closed
        try:
            return self._answer(request)
        finally:
            with self._changed:
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
            self._wave += 1
            self._changed.notify_all()

    def _rests(self) -> None:
        self._working -= 1
        if self._working <= 0:
            self._wave += 1
            self._changed.notify_all()
