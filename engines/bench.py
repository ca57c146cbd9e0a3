"""The models that a task asks beside the policy: those that judge answers, and those that its program delegates to.

Knows names, questions, retries and what answers cost; knows no tasks and no scores. A model is opened when it is first
needed, once in a process. A question is what is asked, of whom, with which settings, and its number among repetitions:
its first readable answer is kept and is the answer from then on, here and in every process that shares the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from dspy import lm15
from dspy.utils.exceptions import ContextWindowExceededError

from colever.config import RemoteSettings
from colever.engines.answers import Answers
from colever.engines.remote import RemoteEngine
from colever.engines.remote_model import remote_model
from colever.engines.tally import current_tally
from colever.errors import InfrastructureError
from colever.process import machine
from colever.stores import stores_of
from colever.types import Cost, digest_of

T = TypeVar("T")
ANSWERS = "judged.db"  # in a home
ASKS = 3  # how often a question is put until an answer can be read
LONGEST = 4000  # characters of a judge's answer that are kept: its end, where the verdict stands


@dataclass(frozen=True)
class Question:
    """``model``: as ``remote_model`` has it. ``number`` tells repetitions apart, ``occasion`` when it is asked anew.

    ``reminder`` is added where an answer could not be read. ``keep``: characters of the answer, from its end; 0: all.
    """

    model: str
    system: str
    text: str
    temperature: float = 0.0
    max_tokens: int = 1024
    number: int = 0
    occasion: str = ""
    reminder: str = ""
    keep: int = LONGEST


class Bench:
    """Models by name, asked as ``settings`` say, their answers kept in ``file`` (None: in memory). Thread-safe."""

    def __init__(self, settings: RemoteSettings | None = None, file: Path | None = None) -> None:
        self._settings, self._file = settings or RemoteSettings(), file
        self._kept: Answers | None = None
        self._models: dict[str, RemoteEngine] = {}
        self._flying: dict[str, Future[tuple[str, Cost]]] = {}
        self._opening, self._lock = threading.Lock(), threading.Lock()

    def open(self, name: str, flag: str = "judge") -> RemoteEngine:
        """The model of that name. Raises UsageError, naming ``flag``, for one that cannot be asked."""
        with self._opening:
            if name not in self._models:
                self._models[name] = RemoteEngine(remote_model(name, flag, choose=True), self._settings)
            return self._models[name]

    def ask(self, question: Question, read: Callable[[str], T | None]) -> T:
        """What ``read`` makes of the answer, which was kept or is asked for now, and counts on the tally at hand.

        Raises InfrastructureError where the model fails or says nothing that can be read, UsageError where it cannot be
        asked at all, BudgetExhausted where no more may be asked.
        """
        engine, tally = self.open(question.model), current_tally()
        key = digest_of([engine.digest, {**asdict(question), "model": ""}])
        with tally.counting(key):
            text, cost = self._answer(key, engine, question, lambda said: read(said) is not None)
            tally.book(key, cost)
        found = read(text)
        assert found is not None
        return found

    def close(self) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.close()
            self._kept = None
            for engine in self._models.values():
                engine.close()
            self._models.clear()

    def _answer(
        self, key: str, engine: RemoteEngine, question: Question, readable: Callable[[str], bool]
    ) -> tuple[str, Cost]:
        """Kept, under way in another thread, or asked for."""
        with self._lock:
            future = self._flying.get(key)
            mine = future is None
            if future is None:
                future = self._flying[key] = Future()
        if not mine:
            return future.result()
        try:
            answer = self._kept_or_new(key, engine, question, readable)
            future.set_result(answer)
            return answer
        except BaseException as error:  # an interrupt too: threads that wait for this answer are told
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                self._flying.pop(key, None)

    def _kept_or_new(
        self, key: str, engine: RemoteEngine, question: Question, readable: Callable[[str], bool]
    ) -> tuple[str, Cost]:
        answers = self._answers()
        found = answers.get(key)
        if found is None or not readable(found["text"]):
            text, cost = _asked(engine, question, readable)
            found = answers.put(key, {"text": text, "cost": asdict(cost)})
        return found["text"], Cost(**found["cost"])

    def _answers(self) -> Answers:
        with self._lock:
            if self._kept is None:
                self._kept = Answers(self._file)
            return self._kept


def _asked(engine: RemoteEngine, question: Question, readable: Callable[[str], bool]) -> tuple[str, Cost]:
    """An answer that can be read, and what it cost with those that could not. What no answer came of is lost."""
    spent, text = Cost(), ""
    try:
        for attempt in range(ASKS):
            response, cost = engine.ask(_request(engine, question, again=attempt > 0))
            both = cost.prompt_tokens + cost.completion_tokens
            spent = spent + Cost(dollars=cost.dollars, judge_calls=1, judge_tokens=both)
            said = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
            text = said.encode("utf-8", "replace").decode()[-question.keep :]
            if readable(text):
                return text, spent
    except ContextWindowExceededError as error:
        current_tally().lose(spent)
        raise InfrastructureError(f"{engine.remote}: the question is too long for it: {error}") from error
    except Exception:  # whatever it was goes on up; what was paid until then is booked
        current_tally().lose(spent)
        raise
    current_tally().lose(spent)
    said = " ".join(text.split())[-120:] or "nothing"
    raise InfrastructureError(f"{engine.remote} gave no answer that can be read, {ASKS} times; the last ends: {said}")


def _request(engine: RemoteEngine, question: Question, *, again: bool) -> lm15.Request:
    text = f"{question.text}\n\n{question.reminder}" if again and question.reminder else question.text
    config = lm15.Config(temperature=question.temperature, max_tokens=question.max_tokens)
    message = lm15.Message.user([lm15.TextPart(text)])
    return lm15.Request(model=engine.remote.name, messages=(message,), system=question.system or None, config=config)


_bench: Bench | None = None
_seating = threading.Lock()


def bench() -> Bench:
    """That of the study at hand, or of this process."""
    with _seating:
        return _bench or _seat(RemoteSettings(), answers_of_home())


def seat(settings: RemoteSettings, file: Path | None = None) -> Bench:
    """From now on this process asks so, until it is told otherwise. ``file`` None: as ``answers_of_home`` says."""
    with _seating:
        return _seat(settings, file or answers_of_home())


@contextmanager
def seated(settings: RemoteSettings, file: Path | None = None) -> Iterator[Bench]:
    """The same for a block, in all threads of the process."""
    global _bench
    before = _bench
    made = seat(settings, file)
    try:
        yield made
    finally:
        with _seating:
            _bench = before
        made.close()


def answers_in(home: Path) -> Path:
    """The file below ``home``; where several machines work on it this one's own: sqlite's locks may not reach far."""
    return home / (f"judged-{machine()}.db" if stores_of(home).database else ANSWERS)


def answers_of_home() -> Path | None:
    """The file in ``COLEVER_HOME``; None where that is not set: answers are kept in memory."""
    home = os.environ.get("COLEVER_HOME")
    return Path(home) / ANSWERS if home else None


def _seat(settings: RemoteSettings, file: Path | None) -> Bench:
    global _bench
    _bench = Bench(settings, file)
    return _bench
