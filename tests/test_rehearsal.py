"""A batch of the prompt lever's rollouts: it is seen to go on, and ends when nobody waits for it any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import ToyEngine, toy_task

from colever.optimizers.budget import Budget
from colever.optimizers.rehearsal import Rehearsal

WIDTH = 2


class Narrow(ToyEngine):
    """Answers two rollouts at once; ``then`` is called with the number of calls."""

    concurrency = WIDTH

    def __init__(self, then: Any = lambda calls: None) -> None:
        super().__init__()
        self.then = then

    def complete(self, request: Any) -> Any:
        self.then(self.calls)
        return super().complete(request)


class Seen:
    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, done: int, total: int, text: str) -> None:
        self.done.append(done)


def rehearsal(folder: Path, engine: ToyEngine, progress: Any = None) -> Rehearsal:
    task = toy_task()
    return Rehearsal(task.base_candidate(), task, engine, Budget(), 0, folder, progress)  # type: ignore[arg-type]


def test_a_batch_is_seen_to_go_on(tmp_path: Path) -> None:
    seen = Seen()
    made = rehearsal(tmp_path, Narrow(), seen)
    ids = list(made._examples)[:20]
    made.mean(made.parent.prompts, ids[:12])
    made.mean(made.parent.prompts, ids)
    assert seen.done == list(range(1, 21))


def test_a_pull_that_is_interrupted_asks_no_further(tmp_path: Path) -> None:
    def then(calls: int) -> None:
        if calls == 6:  # as the prompt lever does where Ctrl-C reaches it, and not the thread that runs the batch
            made.failed = KeyboardInterrupt()

    engine = Narrow(then)
    made = rehearsal(tmp_path, engine)
    with pytest.raises(KeyboardInterrupt):
        made.mean(made.parent.prompts, list(made._examples))
    assert engine.calls <= 6 + 2 * WIDTH
