"""A model behind an API as an engine: messages in, text out, at a price; no tokens, no weights of ours.

Knows requests, retries and what answers cost; knows no tasks and no scores. Asked through ``dspy.LM``, which speaks the
providers' dialects and finds their keys in the environment; the retries are ours, because DSPy's do not cover an answer
that is no answer, and its waits cannot be set. No answer is ever taken from a cache.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from dataclasses import replace
from typing import Any

import dspy
from dspy import lm15
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMProviderError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from colever.config import API, RemoteSettings
from colever.engines.calls import current_call
from colever.engines.price import Price
from colever.engines.remote_model import RemoteModel, address_key, without_keys
from colever.errors import InfrastructureError, UsageError
from colever.types import Completion, Cost, Weights, digest_of

REASONING_TOKENS = 16000  # the least that DSPy takes for OpenAI's reasoning models: their thinking counts
LONGEST_WAIT = 300.0  # seconds: a server that asks for more is not waited for
OURS = (LMAuthError, LMConfigurationError, LMBillingError, LMUnsupportedModelError)  # what only the caller can mend
_LONG = re.compile(r"maximum (context|model) length|context (size|window)")
logger = logging.getLogger(__name__)


class RemoteEngine:
    """One model behind an API; thread-safe. A copy, deep or not, is the engine itself.

    ``settings.concurrency`` requests are open at once, whoever makes them. ``complete`` raises InfrastructureError once
    its retries are used up, UsageError for what the caller can mend (a key, a name, a bill), and DSPy's own error where
    the prompt is too long.
    """

    counts_calls = True  # of each rollout, whether they are answered or not

    def __init__(self, model: RemoteModel, settings: RemoteSettings | None = None) -> None:
        self.remote, self.settings = model, settings or RemoteSettings()
        self.name = f"{API}{model.name.replace('/', ':')}"  # dspy.LM reads a model's rules out of what follows a slash
        self.concurrency = self.settings.concurrency
        self.price = Price(model, self.settings)
        self._lm = _lm(model, self.settings)
        _check_key(model, self._lm)
        self._reasons = _reasons(model)
        self._open = threading.BoundedSemaphore(self.concurrency)
        self._lock = threading.Lock()
        self._cost = Cost()

    # --- what the optimizers ask of an engine --------------------------------------------------------

    @property
    def digest(self) -> str:
        """Identity for store keys: that it is an API, the model's name and its address, wherever that is said."""
        return digest_of(["api", self.remote.name, self.remote.address or self.remote.elsewhere])

    @property
    def version(self) -> str:
        return self.remote.name

    @property
    def meter(self) -> Cost:
        """Running totals since the engine was made: tokens as the API counts them, and dollars."""
        return self._cost

    def load(self, weights: Weights) -> None:
        """Nothing happens: the weights behind an API are what they are. Raises UsageError for any of ours."""
        if weights.kind != "base":
            raise UsageError(f"{self.remote} is a model behind an API: no weights can be loaded into it")

    # --- DSPy's engine interface ---------------------------------------------------------------------

    def complete(self, request: lm15.Request) -> lm15.Response:
        """One answer, asked anew each time; inside a rollout its recorder notes it."""
        recorder = current_call.get()
        if recorder is not None:
            recorder.calls += 1
        response, _ = self.ask(request)
        if recorder is None:
            return response
        modules = dspy.settings.caller_modules
        recorder.completions.append((modules[-1] if modules else None, _noted(request, response, self.version)))
        return replace(response, finish_reason="stop")  # the recorder has it; DSPy would warn of each one cut short

    def stream(self, request: lm15.Request) -> Any:
        raise lm15.UnsupportedFeatureError("an API model is not streamed here")

    def close(self) -> None:
        self._lm.close()

    def __copy__(self) -> RemoteEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEngine:
        return self

    # --- asking --------------------------------------------------------------------------------------

    def ask(self, request: lm15.Request) -> tuple[lm15.Response, Cost]:
        """One answer and what it cost, with the tries that came to nothing; raises what ``complete`` does."""
        request, paid = self._fitted(request), list[Cost]()
        with self._open:
            for attempt in range(self.settings.retries + 1):
                try:
                    return self._once(request, paid), sum(paid, Cost())
                except LMError as error:
                    self._give_up(error, attempt)
                    wait = _wait(error, attempt, self.settings.retry_wait)
                    logger.debug("%s: %s; again in %.1f s", self.remote, type(error).__name__, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, request: lm15.Request, paid: list[Cost]) -> lm15.Response:
        """Raises LMError."""
        with dspy.context(callbacks=[], usage_tracker=None, send_stream=None, disable_history=True):
            response: lm15.Response = self._lm(request=request)
        paid.append(self.price.cost(request, response))
        with self._lock:
            self._cost = self._cost + paid[-1]
        if (response.provider_data or {}).get("choices") == []:
            raise LMProviderError("the answer has no choices", model=self.remote.name)
        return response

    def _give_up(self, error: LMError, attempt: int) -> None:
        """Raise, for good, what another try would not mend; return where one may."""
        said = without_keys(_first_lines(error))
        if isinstance(error, ContextWindowExceededError) or _too_long(error):
            raise ContextWindowExceededError(message=said, model=self.remote.name) from None
        if isinstance(error, OURS) or getattr(error, "status", None) in (401, 403, 404):
            raise UsageError(f"{self.remote}: {said}") from None
        wait = getattr(error, "retry_after", None) or 0.0
        if wait > LONGEST_WAIT:
            raise InfrastructureError(f"{self.remote} asks to be left alone for {wait:,.0f} s: {said}") from None
        if not (is_retryable_lm_error(error) or _broken_answer(error)):
            raise InfrastructureError(f"{self.remote}: {said}") from None
        if attempt >= self.settings.retries:
            raise InfrastructureError(f"{self.remote} failed {attempt + 1} times, the last time: {said}") from None

    def _fitted(self, request: lm15.Request) -> lm15.Request:
        """For this model; one that reasons takes no temperature, and needs room to think."""
        config = request.config
        if self._reasons:
            room = max(config.max_tokens or 0, REASONING_TOKENS)
            config = replace(config, temperature=None, max_tokens=room)
        return replace(request, model=self._lm.model, config=config)


def _lm(model: RemoteModel, settings: RemoteSettings) -> dspy.LM:
    """Uncached and without retries of its own; a provider's key is found by DSPy."""
    where = {"api_base": model.address, "api_key": address_key()} if model.address else {}
    return dspy.LM(model.lm_name, cache=False, num_retries=0, timeout=settings.timeout, **where)


def _check_key(model: RemoteModel, lm: dspy.LM) -> None:
    """Raises UsageError where DSPy's own engine would find no key: now, not when prompts have been paid for.

    LiteLLM's further providers are found out by the first request.
    """
    from dspy.clients.backend_selection import select_backend

    selection = select_backend(lm)
    if not selection.native or "api_key" in selection.clients:
        return
    router = lm15.LMRouter(lm15.RouterConfig())
    try:
        router.lm(f"{selection.resolution.provider}:{selection.resolution.model}")
    except lm15.NotConfiguredError as error:
        said = str(error).partition(", or pass")[0].partition("\n")[0].rstrip(".")
        raise UsageError(f"{model}: {said}") from None
    finally:
        router.close()


def _reasons(model: RemoteModel) -> bool:
    """Whether ``dspy.LM`` has its rules for OpenAI's reasoning models for it."""
    try:
        dspy.LM(model.lm_name, max_tokens=1)
    except LMConfigurationError:
        return True
    return False


def _wait(error: LMError, attempt: int, first: float) -> float:
    """What the server asks for; else twice as long each time, spread so that threads do not come back together."""
    asked = getattr(error, "retry_after", None)
    if asked is not None:
        return float(asked)
    return min(60.0, first * 2**attempt) * random.uniform(0.5, 1.0)


def _too_long(error: LMError) -> bool:
    """A prompt that is too long, as servers without a code for it say so. Where they say that ``max_tokens`` is too
    large, it is the task's setting: no failure of the policy.
    """
    text = str(error)
    return getattr(error, "status", None) == 400 and bool(_LONG.search(text)) and "max_" not in text


def _broken_answer(error: LMError) -> bool:
    """An answer that is none, from a server that said all is well: no JSON, or no choices."""
    return type(error) is LMProviderError and getattr(error, "status", None) in (None, 200)


def _first_lines(error: LMError) -> str:
    """What the server said, without DSPy's advice to its own users."""
    text = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}: {text.partition('] ')[2] or text}"


def _noted(request: lm15.Request, response: lm15.Response, version: str) -> Completion:
    """An answer as a rollout's step has it: words and counts, no tokens."""
    text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
    read, wrote = response.usage.input_tokens, response.usage.output_tokens
    return Completion(
        text, (), (), (), "length" if response.finish_reason == "length" else "stop", version,
        prompt=_words(request), counted=None if read is None or wrote is None else (read, wrote),
    )  # fmt: skip


def _words(request: lm15.Request) -> str:
    """The messages as text, each after its role."""
    said = [(m.role, _text(m.parts)) for m in request.messages]
    if request.system is not None:
        said.insert(0, ("system", _text(request.system)))
    return "\n\n".join(f"{role}:\n{text}" for role, text in said)


def _text(parts: Any) -> str:
    return parts if isinstance(parts, str) else "".join(getattr(p, "text", f"[{type(p).__name__}]") for p in parts)
