"""The thread that steps vLLM in this process, with a small engine in vLLM's place: order, sleep, failures, end.

vLLM itself is tried in ``slow/test_vllm_inside.py``, its sleep in ``gpu/test_vllm_inside_gpu.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from colever.engines.vllm_client import Gone
from colever.engines.vllm_loop import VllmLoop


@dataclass
class Output:
    request_id: str
    prompt: Any
    finished: bool = True


@dataclass
class Stepped:
    """Answers each request after as many steps as its prompt says; ``told``: what happened, in order."""

    told: list[str] = field(default_factory=list)
    running: dict[str, list[int]] = field(default_factory=dict)
    together: int = 0  # the most requests of one step
    gate: threading.Event = field(default_factory=threading.Event)

    def add_request(self, name: str, prompt: int, params: Any, lora_request: Any) -> str:
        if prompt < 0:
            raise ValueError("refused")
        self.told.append("add")
        self.running[name] = [prompt, prompt]
        return name

    def step(self) -> list[Output]:
        self.gate.wait(60)
        self.together = max(self.together, len(self.running))
        if any(prompt == 99 for prompt, _ in self.running.values()):
            raise RuntimeError("out of memory")
        for left in self.running.values():
            left[1] -= 1
        ended = [name for name, (_, left) in self.running.items() if left <= 0]
        self.told += ["end"] * len(ended)
        return [Output(name, self.running.pop(name)[0]) for name in ended]

    def sleep(self, level: int) -> None:
        assert not self.running
        self.told.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.told.append("wake")


@pytest.fixture
def engine() -> Stepped:
    made = Stepped()
    made.gate.set()
    return made


@pytest.fixture
def loop(engine: Stepped) -> Iterator[VllmLoop]:
    made = VllmLoop(lambda: engine, lambda e: e.told.append("shut"), sleeps=True)
    yield made
    made.close()


def test_requests_of_many_threads_share_the_steps_and_each_gets_its_own_answer(engine: Stepped, loop: VllmLoop) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        found = [pool.submit(loop.sample, prompt, None, None) for prompt in range(1, 17)]
        while engine.told.count("add") < 1:
            pass
        engine.gate.set()
        assert [future.result().prompt for future in found] == list(range(1, 17))
    assert engine.together > 1


def test_it_sleeps_once_and_whatever_is_asked_wakes_it(engine: Stepped, loop: VllmLoop) -> None:
    loop.rest()
    assert loop.asleep
    loop.rest()
    loop.sample(1, None, None)
    assert not loop.asleep
    loop.rest()
    assert loop.between(lambda e: e.told[-1]) == "wake"
    assert engine.told == ["sleep 1", "wake", "add", "end", "sleep 1", "wake"]


def test_nothing_sleeps_without_a_sleep_mode(engine: Stepped) -> None:
    loop = VllmLoop(lambda: engine, lambda e: None, sleeps=False)
    loop.rest()
    assert not loop.asleep
    loop.close()
    assert engine.told == []


def test_what_needs_the_engine_alone_waits_for_the_requests_under_way(engine: Stepped, loop: VllmLoop) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(loop.sample, 3, None, None)
        while not engine.running:
            pass
        alone = pool.submit(loop.alone, lambda e: dict(e.running))
        engine.gate.set()
        assert alone.result() == {}
        assert answer.result().prompt == 3


def test_one_that_is_refused_fails_alone(engine: Stepped, loop: VllmLoop) -> None:
    with pytest.raises(ValueError, match="refused"):
        loop.sample(-1, None, None)
    with pytest.raises(KeyError):
        loop.between(lambda e: {}["none"])
    assert loop.sample(2, None, None).prompt == 2
    assert not loop.broken


def test_a_step_that_fails_ends_it_for_all_that_wait_and_come(engine: Stepped, loop: VllmLoop) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(loop.sample, prompt, None, None) for prompt in (500, 99, 700)]
        engine.gate.set()
        for future in asked:
            with pytest.raises(Gone, match="RuntimeError: out of memory"):
                future.result()
    assert loop.broken
    with pytest.raises(Gone, match="out of memory"):
        loop.sample(1, None, None)
    loop.rest()
    loop.close()
    assert engine.told.count("shut") == 1


def test_one_that_cannot_be_made_says_why_and_one_that_was_closed_answers_no_more(engine: Stepped) -> None:
    def fails() -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        VllmLoop(fails, lambda e: None, sleeps=True)
    loop = VllmLoop(lambda: engine, lambda e: e.told.append("shut"), sleeps=True)
    loop.close()
    loop.close()
    assert engine.told == ["shut"]
    with pytest.raises(Gone, match="was closed"):
        loop.sample(1, None, None)
