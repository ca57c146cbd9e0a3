"""Requests that go to a server from their rollouts' own threads: held while others are at work, never for an answer."""

from __future__ import annotations

import threading

import pytest

from colever.engines.direct_session import DirectSession
from colever.engines.generation import TokenRequest
from colever.types import Completion

NEVER = 600.0


def answered(request: TokenRequest) -> Completion:
    return Completion("", request.prompt_ids, (1,), (0.0,), "stop", "base")


def test_requests_go_out_together_when_nobody_is_at_work_any_more() -> None:
    out, together = list[int](), threading.Barrier(3, timeout=60)

    def answer(request: TokenRequest) -> Completion:
        together.wait()  # breaks if one of them was sent before the others
        out.append(request.seed)
        return answered(request)

    session = DirectSession(answer, 4, hold=NEVER)
    threads = [threading.Thread(target=session.request, args=(n, (), TokenRequest((1,), seed=n))) for n in range(3)]
    for thread in threads:
        thread.start()
    assert not out
    session.finished()  # the fourth ends without a request
    for thread in threads:
        thread.join(60)
    assert sorted(out) == [0, 1, 2]


def test_a_rollout_goes_on_while_another_one_waits_for_its_answer() -> None:
    slow = threading.Event()

    def answer(request: TokenRequest) -> Completion:
        assert request.seed != 0 or slow.wait(60)
        return answered(request)

    session = DirectSession(answer, 2, hold=NEVER)
    waits = threading.Thread(target=session.request, args=(0, (), TokenRequest((1,), seed=0)))
    waits.start()
    for seed in range(1, 6):  # one call after the other
        session.request(1, (), TokenRequest((1,), seed=seed))
    session.finished()
    slow.set()
    waits.join(60)
    assert not waits.is_alive()


@pytest.mark.parametrize("most", [0.01, NEVER])
def test_nobody_is_held_for_long_by_one_that_is_busy(most: float) -> None:
    session = DirectSession(answered, 2, hold=0.01, most=most)
    assert session.request(0, (), TokenRequest((7,))).prompt_ids == (7,)  # the other one never asks


def test_those_that_are_held_go_out_together_though_another_one_is_busy() -> None:
    together = threading.Barrier(3, timeout=60)

    def answer(request: TokenRequest) -> Completion:
        together.wait()  # breaks if one of them waits until the first has its answer
        return answered(request)

    session = DirectSession(answer, 4, hold=0.5)
    threads = [threading.Thread(target=session.request, args=(n, (), TokenRequest((1,), seed=n))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not together.broken


def test_what_ends_a_session_reaches_the_requests_that_are_held() -> None:
    session, raised = DirectSession(answered, 2, hold=NEVER), list[BaseException]()

    def ask() -> None:
        try:
            session.request(0, (), TokenRequest((1,)))
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    session.close(KeyboardInterrupt())
    thread.join(60)
    assert len(raised) == 1
    with pytest.raises(KeyboardInterrupt):
        session.request(1, (), TokenRequest((1,)))
