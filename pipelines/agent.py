"""An agent that is not DSPy as a program: it asks an endpoint as it would ask OpenAI, and both levers can use its runs.

Knows the agent, its prompts and the engine behind DSPy's LM; no tasks, no scores. One call of the program is one run of
the agent against the process's endpoint. Each of its requests is a step of the predictor whose system prompt it has:
the candidate's text is put in that prompt's place, and the request is answered from the rollout's own thread, as a call
of a DSPy predictor would be. So rollouts, both levers and the budget see what they see of any program.

Decoding is the run's: temperature, top_p and seed of a request are not read, ``max_tokens`` may only lower the task's.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import dspy

from colever.errors import ColeverError, InfrastructureError, TaskError
from colever.pipelines.agent_answers import Answers
from colever.pipelines.agent_worker import Connection, Ended, prediction_of, start
from colever.pipelines.endpoint import ENDPOINT, Asked

SECONDS = 120.0
CALLS = 64
SETTLE = 5.0  # seconds that the endpoint has to say whether an answer was heard
Run = Callable[..., Any] | Sequence[str]


def agent_program(
    run: Run,
    system: str = "",
    *,
    prompts: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    calls: int = CALLS,
) -> Callable[[], dspy.Module]:
    """What a ``Task`` takes as its ``program``, of an agent with one prompt, ``system``, or several, ``prompts``.

    ``run`` is a function of a ``Connection`` and the example's inputs by name (``async`` if you like), or a command, as
    a list. A request belongs to the prompt whose text its system message holds; the predictor of a single prompt is
    called ``agent``. ``seconds``: of the agent's own time in a run, what it waits for the model not counted; one that
    takes longer is an infrastructure failure. ``calls``: requests of a run; one more is a failure of the policy.
    Raises TaskError for prompts that cannot be told apart.
    """
    named = dict(prompts or {}) if prompts or not system else {"agent": system}
    if prompts and system:
        raise TaskError("agent_program: system and prompts; accepted: one of them")
    made = partial(AgentProgram, run, named, seconds, calls)
    made()  # what is wrong with it is said here
    return made


class AgentProgram(dspy.Module):
    """See ``agent_program``. Its predictors hold the prompts and are never called by themselves."""

    def __init__(self, run: Run, prompts: Mapping[str, str], seconds: float = SECONDS, calls: int = CALLS) -> None:
        super().__init__()
        _check(self, run, prompts)
        self.run, self.texts, self.seconds, self.most = run, dict(prompts), seconds, calls
        for name, text in prompts.items():
            setattr(self, name, dspy.Predict(dspy.Signature("messages: list -> reply: str", text)))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Raises what the agent raises; InfrastructureError where the model, or the way to it, failed beneath it."""
        events: SimpleQueue[Any] = SimpleQueue()
        answers = Answers({name: getattr(self, name) for name in self.texts}, self.texts)
        with _refusing_rest(events), ENDPOINT.opened(events.put) as (address, key):
            connection = Connection(address, key, ENDPOINT.model, answers.texts)
            stop = start(self.run, connection, inputs, events.put)
            try:
                ended = self._serve(events, answers)
            finally:
                stop()
        return self._outcome(ended, answers)

    def _serve(self, events: SimpleQueue[Any], answers: Answers) -> Ended:
        """Answer the agent's requests until it ends."""
        left, asked = self.seconds, list[Asked]()
        while True:
            since = time.monotonic()
            try:
                event = events.get(timeout=max(0.0, left))
            except Empty:
                raise InfrastructureError(
                    f"the agent took more than {self.seconds:g} s of its own time (agent_program(seconds=…))"
                ) from None
            left -= time.monotonic() - since
            if isinstance(event, Ended):
                _check_heard(asked)
                return event
            asked.append(event)
            if answers.requests >= self.most:
                event.refuse(400, f"accepted: {self.most} requests in a run")
                raise RuntimeError(f"the agent came to no end in {self.most} requests (agent_program(calls=…))")
            answers.answer(event)

    def _outcome(self, ended: Ended, answers: Answers) -> dspy.Prediction:
        """The agent's prediction. Raises what it came to instead."""
        if isinstance(ended.error, ColeverError):
            raise ended.error
        if answers.refused and not answers.calls:
            raise TaskError(f"the agent's requests were refused: {answers.refused}") from ended.error
        if answers.calls and not answers.known:
            raise TaskError(
                "none of the agent's requests had one of its prompts in its system message; accepted: the text that "
                f"the task gives as system or in prompts ({', '.join(self.texts)})"
            )
        if ended.error is None:
            return prediction_of(ended.answer)
        if answers.too_long is not None:
            raise answers.too_long.policy() from ended.error
        if _unreachable(ended.error):
            raise InfrastructureError(f"{type(ended.error).__name__}: {ended.error}") from ended.error
        if not isinstance(ended.error, Exception):
            raise RuntimeError(f"the agent ended with {type(ended.error).__name__}") from ended.error
        raise ended.error


def _check(program: dspy.Module, run: Run, prompts: Mapping[str, str]) -> None:
    """Raises TaskError."""
    if not callable(run) and (isinstance(run, str) or not all(isinstance(part, str) for part in run) or not run):
        raise TaskError(f"an agent is {run!r}; accepted: a function, or a command as a list of texts")
    if not prompts:
        raise TaskError("an agent without a system prompt; accepted: its text as system, or several as prompts by name")
    for name, text in prompts.items():
        if not name.isidentifier() or hasattr(program, name) or name in ("run", "texts", "seconds", "most"):
            raise TaskError(f"a prompt is called {name!r}; accepted: a Python name that a dspy.Module has not itself")
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"prompt {name!r} of an agent is {text!r}; accepted: a text that is not empty")
    texts = [inspect.cleandoc(text) for text in prompts.values()]
    if len(set(texts)) < len(texts):
        raise TaskError("two prompts of an agent have the same text: no request can be told to be of one of them")


@contextmanager
def _refusing_rest(events: SimpleQueue[Any]) -> Iterator[None]:
    """Refuse what the agent had asked, and nobody has answered, when its run has ended."""
    try:
        yield
    finally:
        with contextlib.suppress(Empty):
            while True:
                event = events.get_nowait()
                if isinstance(event, Asked):
                    event.refuse(401, "the rollout has ended")


def _check_heard(asked: Sequence[Asked]) -> None:
    """Raises InfrastructureError where a client did not wait for its answer: the agent may have gone on without it."""
    for request in asked:
        request.settled.wait(SETTLE)
        if request.hung_up:
            raise InfrastructureError(
                "the agent's client hung up before the model had answered; accepted: a time-out that a whole batch "
                "fits in (timeout=None)"
            )


def _unreachable(error: BaseException) -> bool:
    """Whether an agent failed for want of something that it asked over a network: no doing of the model's."""
    import openai

    theirs = openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError
    broken = (ConnectionError, TimeoutError, *theirs)
    while error is not None:
        if isinstance(error, broken):
            return True
        error = error.__cause__  # type: ignore[assignment]
    return False
