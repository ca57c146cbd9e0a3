"""Calls outside a session: gathered into one batch, and never left waiting for a leader that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from colever.engines.generation import TokenRequest
from colever.engines.session import Gatherer
from colever.types import Completion


def answer(requests: Sequence[TokenRequest]) -> list[Completion]:
    return [Completion("", r.prompt_ids, (), (), "stop", "") for r in requests]


class Caller:
    """A thread with one request; ``got`` is its completion or what it raised."""

    def __init__(self, gatherer: Gatherer, token: int) -> None:
        self.got: Completion | BaseException | None = None
        self._thread = threading.Thread(target=self._call, args=(gatherer, token), daemon=True)
        self._thread.start()

    def _call(self, gatherer: Gatherer, token: int) -> None:
        try:
            self.got = gatherer.request(TokenRequest((token,)))
        except BaseException as error:  # noqa: BLE001 - what it raised is what the test looks at
            self.got = error

    def result(self) -> Completion | BaseException | None:
        self._thread.join(10)
        return self.got


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not reached() and time.monotonic() < end:
        time.sleep(0.001)
    assert reached()


def test_calls_at_once_are_one_batch() -> None:
    batches: list[int] = []

    def complete(requests: Sequence[TokenRequest]) -> list[Completion]:
        batches.append(len(requests))
        return answer(requests)

    gatherer = Gatherer(complete, seconds=0.3)
    callers = [Caller(gatherer, token) for token in range(5)]
    assert [c.result().prompt_ids for c in callers] == [(token,) for token in range(5)]  # type: ignore[union-attr]
    assert sum(batches) == 5
    assert len(batches) < 5


def test_while_a_batch_runs_the_next_one_fills() -> None:
    batches: list[int] = []
    go_on = threading.Event()

    def complete(requests: Sequence[TokenRequest]) -> list[Completion]:
        batches.append(len(requests))
        go_on.wait(10)
        return answer(requests)

    gatherer = Gatherer(complete, seconds=0.0)
    first = Caller(gatherer, 0)
    until(lambda: batches == [1])
    later = []
    for token in range(1, 6):
        later.append(Caller(gatherer, token))
        until(lambda token=token: len(gatherer._slots) == token)  # type: ignore[misc]
    go_on.set()
    assert [c.result().prompt_ids for c in [first, *later]] == [(token,) for token in range(6)]  # type: ignore[union-attr]
    assert batches == [1, 5]


def test_an_interrupt_while_the_leader_waits_reaches_all_and_later_calls_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gatherer, callers = Gatherer(answer), list[Caller]()

    def interrupted(_: float) -> None:
        callers.append(Caller(gatherer, 2))
        until(lambda: len(gatherer._slots) == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("colever.engines.session.time", SimpleNamespace(sleep=interrupted))
    with pytest.raises(KeyboardInterrupt):
        gatherer.request(TokenRequest((1,)))
    monkeypatch.undo()
    assert isinstance(callers[0].result(), KeyboardInterrupt)
    later = Caller(gatherer, 3).result()
    assert isinstance(later, Completion)
    assert later.prompt_ids == (3,)


def test_who_rejoins_after_a_batch_is_in_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    go_on, callers = threading.Event(), list[Caller]()

    def complete(requests: Sequence[TokenRequest]) -> list[Completion]:
        batches.append(len(requests))
        assert go_on.wait(10)
        return answer(requests)

    def come_back(_: float) -> None:
        if go_on.is_set() and len(callers) < 3:  # in the moment after the first batch
            callers.append(Caller(gatherer, 3))
            until(lambda: len(gatherer._slots) == 2)

    gatherer = Gatherer(complete, settle=True, rejoin=True)
    monkeypatch.setattr("colever.engines.session.time", SimpleNamespace(sleep=come_back))
    callers.append(Caller(gatherer, 1))
    until(lambda: batches == [1])
    callers.append(Caller(gatherer, 2))
    until(lambda: len(gatherer._slots) == 1)
    go_on.set()
    until(lambda: len(callers) == 3)
    assert [c.result().prompt_ids for c in callers] == [(1,), (2,), (3,)]  # type: ignore[union-attr]
    assert batches == [1, 2]


def test_a_batch_that_fails_reaches_all_of_it_and_no_other() -> None:
    def fail(requests: Sequence[TokenRequest]) -> list[Completion]:
        if requests[0].prompt_ids == (1,):
            raise ValueError("no")
        return answer(requests)

    gatherer = Gatherer(fail)
    with pytest.raises(ValueError, match="no"):
        gatherer.request(TokenRequest((1,)))
    assert gatherer.request(TokenRequest((2,))).prompt_ids == (2,)
