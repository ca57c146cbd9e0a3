"""A user's agent at work on one example: a function in a thread, or a command in a process of its own.

Knows how to start and stop one, and what it hands back; nothing of models or prompts. A thread cannot be stopped: an
agent that hangs is left behind, with a key that no longer opens anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

_LOOPBACK: Any = {"verify": False, "trust_env": False, "timeout": None}  # nothing to verify, no proxy on the way


@dataclass(frozen=True)
class Connection:
    """What an agent is handed: where to ask, and the prompts of this rollout by name.

    An agent that has its system prompt written into it may leave ``prompts`` alone: the endpoint puts the rollout's in
    its place.
    """

    base_url: str
    api_key: str
    model: str
    prompts: Mapping[str, str]

    @property
    def prompt(self) -> str:
        """The only one. Raises ValueError where there are several."""
        (text,) = self.prompts.values()
        return text

    def client(self) -> Any:
        """An ``openai.OpenAI``, made in a millisecond where one that reads certificates takes thirty."""
        import openai

        return openai.OpenAI(http_client=openai.DefaultHttpxClient(**_LOOPBACK), **self._options())

    def async_client(self) -> Any:
        """An ``openai.AsyncOpenAI``."""
        import openai

        return openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient(**_LOOPBACK), **self._options())

    def _options(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "api_key": self.api_key, "max_retries": 0, "timeout": None}


@dataclass(frozen=True)
class Ended:
    """What an agent came to: an answer, or what it raised."""

    answer: Any = None
    error: BaseException | None = None


def start(
    run: Callable[..., Any] | Sequence[str],
    connection: Connection,
    inputs: Mapping[str, Any],
    tell: Callable[[Ended], None],
) -> Callable[[], None]:
    """Set an agent to work; ``tell`` gets its end, from its thread. What is returned stops a command, if it can."""
    work = _Command(run) if not callable(run) else _Function(run)

    def do() -> None:
        try:
            tell(Ended(work(connection, inputs)))
        except BaseException as error:  # noqa: BLE001 - carried to the rollout's thread, which sorts it
            tell(Ended(error=error))

    threading.Thread(target=contextvars.copy_context().run, args=(do,), daemon=True, name="agent").start()
    return work.stop


def prediction_of(answer: Any) -> dspy.Prediction:
    """An agent's answer as a prediction: a mapping is its fields, anything else the field ``answer``.

    Raises ValueError for no answer at all: what the model wrote led nowhere.
    """
    if answer is None:
        raise ValueError("the agent returned no answer")
    if isinstance(answer, dspy.Prediction):
        return answer
    fields = {str(k): v for k, v in answer.items()} if isinstance(answer, Mapping) else {"answer": answer}
    return dspy.Prediction(**fields)


class _Function:
    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, connection: Connection, inputs: Mapping[str, Any]) -> Any:
        made = self._run(connection, **inputs)
        return asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made

    def stop(self) -> None:
        """A thread cannot be."""


async def _awaited(made: Any) -> Any:
    return await made


class _Command:
    """``OPENAI_BASE_URL`` and the like in its environment, inputs as JSON on stdin, its answer as JSON on stdout."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command, self._stopped = list(command), False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, connection: Connection, inputs: Mapping[str, Any]) -> Any:
        env = {
            "OPENAI_BASE_URL": connection.base_url, "OPENAI_API_KEY": connection.api_key,
            "OPENAI_MODEL": connection.model, "COLEVER_PROMPTS": json.dumps(dict(connection.prompts)),
        }  # fmt: skip
        with self._lock:
            if self._stopped:
                return None
            self._process = process = subprocess.Popen(
                self._command, env={**os.environ, **env}, text=True, encoding="utf-8", errors="replace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        out, err = process.communicate(json.dumps(dict(inputs)))
        if process.returncode:
            last = next((line for line in reversed(err.splitlines()) if line.strip()), "nothing on stderr")
            raise RuntimeError(f"{self._command[0]} ended with status {process.returncode}: {last.strip()[:500]}")
        line = next((line for line in reversed(out.splitlines()) if line.strip()), "")
        try:
            return json.loads(line)
        except ValueError:
            raise RuntimeError(
                f"the last line on stdout of {self._command[0]} is {line[:200]!r}; accepted: its answer as JSON"
            ) from None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
