"""Gathers the requests of concurrent threads into batches.

Knows token requests and a function that completes a list of them; nothing of models, programs or messages.

A session has a known number of live rollouts and runs a batch whenever every one of them waits for the model:
batches are full, and what is in them does not depend on which thread came first. Calls outside a session
(a bare ``lm("hi")``) are gathered for about two milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from colever.engines.generation import TokenRequest
from colever.types import Completion

Complete = Callable[[Sequence[TokenRequest]], list[Completion]]


class _Slot:
    """One waiting request; ``key`` orders the batch."""

    __slots__ = ("key", "reply", "request")

    def __init__(self, key: tuple, request: TokenRequest) -> None:
        self.key = key
        self.request = request
        self.reply: SimpleQueue[Completion | BaseException] = SimpleQueue()

    def wait(self) -> Completion:
        answer = self.reply.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Session:
    """``live`` rollouts that share batches; the thread that opened it runs them with ``run``."""

    def __init__(self, complete: Complete, live: int) -> None:
        self._complete = complete
        self._live = live
        self._slots: list[_Slot] = []
        self._waiting: dict[object, int] = {}  # rollout -> its open requests
        self._changed = threading.Condition()
        self._closed: BaseException | None = None

    def request(self, rollout: object, key: tuple, request: TokenRequest) -> Completion:
        """From a rollout's thread: blocks until the batch with this request ran. Raises what the batch raised."""
        slot = _Slot(key, request)
        with self._changed:
            if self._closed is not None:
                raise self._closed
            self._slots.append(slot)
            self._waiting[rollout] = self._waiting.get(rollout, 0) + 1
            if self._ready():
                self._changed.notify_all()
        return slot.wait()

    def finished(self) -> None:
        """One live rollout ended (or its thread has none left)."""
        with self._changed:
            self._live -= 1
            if self._ready():
                self._changed.notify_all()

    def run(self) -> None:
        """Run batches until no rollout lives. An interrupt ends the session and reaches every waiting thread."""
        while slots := self._next_batch():
            slots.sort(key=lambda s: s.key)
            try:
                answers: Sequence[Completion | BaseException] = self._complete([s.request for s in slots])
            except Exception as error:  # noqa: BLE001 - the boundary to the waiting threads: each raises it
                answers = [error] * len(slots)
            except BaseException as error:
                self.close(error, slots)
                raise
            for slot, answer in zip(slots, answers, strict=True):
                slot.reply.put(answer)

    def close(self, error: BaseException, slots: Sequence[_Slot] = ()) -> None:
        """Refuse further requests and fail the waiting ones with ``error``."""
        with self._changed:
            self._closed = error
            waiting, self._slots = [*slots, *self._slots], []
            self._waiting.clear()
            self._changed.notify_all()
        for slot in waiting:
            slot.reply.put(error)

    def _ready(self) -> bool:
        return self._live <= 0 or len(self._waiting) >= self._live

    def _next_batch(self) -> list[_Slot]:
        with self._changed:
            self._changed.wait_for(self._ready)
            slots, self._slots = self._slots, []
            self._waiting.clear()
            return slots


class Gatherer:
    """Batches calls that belong to no session: the first caller waits a moment, then runs all that came.

    While a batch runs the next one goes on filling, so that many threads make few batches. ``settle``: the moment
    lasts until nobody came during ``seconds``. ``rejoin``: so it does once more when the batch before has ended, whose
    callers ask again at once; else callers that were once apart stay two halves that take turns.
    """

    def __init__(
        self, complete: Complete, seconds: float = 0.002, *, settle: bool = False, rejoin: bool = False
    ) -> None:
        self._complete = complete
        self._seconds, self._settle, self._rejoin = seconds, settle, rejoin
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._slots: list[_Slot] = []

    def request(self, request: TokenRequest) -> Completion:
        slot = _Slot((), request)
        with self._lock:
            slots = self._slots
            slots.append(slot)
        if slots[0] is slot:
            self._lead(slots)
        return slot.wait()

    def _lead(self, slots: list[_Slot]) -> None:
        """Wait, then answer all that came. What ends the wait or the batch, an interrupt too, reaches each of them."""
        answers: Sequence[Completion | BaseException]
        try:
            self._wait(slots)
            busy = self._running.locked()
            with self._running:
                if self._rejoin and busy:
                    self._wait(slots)
                self._close(slots)
                answers = self._complete([s.request for s in slots])
        except BaseException as error:  # noqa: BLE001 - each waiting thread raises it, this one too
            self._close(slots)
            answers = [error] * len(slots)
        for slot, answer in zip(slots, answers, strict=True):
            slot.reply.put(answer)

    def _wait(self, slots: list[_Slot]) -> None:
        there = 0
        while there < len(slots):
            there = len(slots)
            time.sleep(self._seconds)
            if not self._settle:
                break

    def _close(self, slots: list[_Slot]) -> None:
        """Later calls make another batch, with a leader of their own."""
        with self._lock:
            if self._slots is slots:
                self._slots = []
