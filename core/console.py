"""The one console: progress and messages on stderr, results on stdout. Knows rich; knows nothing of studies."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

NOISY = (
    "accelerate", "alembic", "datasets", "dspy", "filelock", "httpx", "LiteLLM", "matplotlib", "mlflow", "optuna",
    "peft", "torch", "transformers", "trl",
)  # fmt: skip
LINE_EVERY = 15.0  # seconds between progress lines where there is no terminal


def stderr() -> Console:
    """This stream, even while a library's output is caught; a name such as ``file.py:x:`` holds no emoji."""
    return Console(file=sys.stderr, highlight=False, emoji=False)


def say(text: str) -> None:
    """One line to the user, beside the results."""
    stderr().print(escape(text), soft_wrap=True)


def fail(text: str) -> None:
    """One error line."""
    stderr().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def show(renderable: RenderableType, *, whole_lines: bool = False) -> None:
    """A result on stdout; with ``whole_lines`` text is not broken where it goes to no terminal."""
    console = Console(highlight=False, emoji=False)
    console.print(renderable, soft_wrap=whole_lines and not console.is_terminal)


def show_json(value: Any) -> None:
    """A result for machines: nothing else goes to stdout."""
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False, no_color=True).print(
        json.dumps(value, indent=2, ensure_ascii=False), end="\n"
    )


def silence() -> None:
    """Libraries' chatter off, unless COLEVER_VERBOSE is set. Called before they are imported."""
    if os.environ.get("COLEVER_VERBOSE"):
        return
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "dspy" else logging.ERROR)


class _Rate(ProgressColumn):
    """Work per second of this stage."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="dim")


class ConsoleProgress:
    """Stages drawn one at a time on stderr, with rate and remaining time; plain lines where there is no terminal.

    A stage begins when the total changes or the count falls.
    """

    def __init__(self) -> None:
        self._console = stderr()
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), _Rate(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=self._console, transient=True) if self._console.is_terminal else None
        self._done, self._total = 0, 0
        self._stage: Any = None  # rich's task, or True where lines are written
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, text: str) -> None:
        """How far a stage has come. Called from any thread."""
        fresh = self._stage is None or total != self._total or done < self._done
        self._done, self._total = done, total
        if self._bar is not None:
            self._draw(fresh, text)
        else:
            self._write(fresh, text)

    def _draw(self, fresh: bool, text: str) -> None:
        bar: Any = self._bar
        if fresh:
            if self._stage is not None:
                bar.remove_task(self._stage)
            self._stage = bar.add_task(escape(text), total=self._total)
        bar.update(self._stage, completed=self._done, description=escape(text))

    def _write(self, fresh: bool, text: str) -> None:
        now = time.monotonic()
        if fresh:
            self._stage, self._started = True, now
        if not (fresh or self._done >= self._total or now - self._printed >= LINE_EVERY):
            return
        self._printed, elapsed = now, now - self._started
        rate = self._done / elapsed if elapsed > 1 and self._done > 0.03 * self._total else 0.0
        left = f", {rate:,.1f}/s, {(self._total - self._done) / rate:,.0f} s left" if rate else ""
        self._console.print(escape(f"{text}: {self._done} of {self._total}{left}"), soft_wrap=True)


@contextmanager
def progress() -> Iterator[ConsoleProgress]:
    """Progress for the length of a block."""
    with ConsoleProgress() as drawn:
        yield drawn


def pairs(values: Mapping[str, Any]) -> str:
    """``a=1, b=2``."""
    return ", ".join(f"{key}={value}" for key, value in values.items())
