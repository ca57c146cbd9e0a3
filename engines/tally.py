"""What the models that a task asks have cost in a stretch of work. Knows costs and keys; asks nobody.

Each question counts once in a stretch, for what its answer cost, whether it was asked now or was kept from before: a
stretch that was killed and is run again counts what it counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from colever.types import Cost

Allow = Callable[[int], object]


class Tally:
    """Thread-safe. ``allow`` gets the number of calls with the next one, before it is made, and may raise."""

    def __init__(self, allow: Allow) -> None:
        self._allow, self._lock = allow, threading.Lock()
        self._costs: dict[str, Cost] = {}
        self._open: Counter[str] = Counter()  # questions under way, and by how many threads
        self._lost = Cost()

    @property
    def cost(self) -> Cost:
        with self._lock:
            return sum(self._costs.values(), self._lost)

    @contextmanager
    def counting(self, key: str) -> Iterator[None]:
        """Around one question, which is then booked or lost. Raises what ``allow`` raises."""
        with self._lock:
            if key not in self._costs and key not in self._open:
                made = sum(self._costs.values(), self._lost).judge_calls
                self._allow(made + len(self._open.keys() - self._costs.keys()) + 1)
            self._open[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]

    def book(self, key: str, cost: Cost) -> None:
        """What the question's answer cost."""
        with self._lock:
            self._costs[key] = cost

    def lose(self, cost: Cost) -> None:
        """What was paid for no answer."""
        with self._lock:
            self._lost = self._lost + cost


_current: ContextVar[Tally | None] = ContextVar("tally", default=None)


def current_tally() -> Tally:
    """That of the stretch of work at hand; outside of one nobody reads what is counted."""
    return _current.get() or Tally(lambda calls: None)


@contextmanager
def tallied(allow: Allow = lambda calls: None) -> Iterator[Tally]:
    """Count what is asked in the block, in this thread and in those that are started with its context."""
    tally = Tally(allow)
    token = _current.set(tally)
    try:
        yield tally
    finally:
        _current.reset(token)
