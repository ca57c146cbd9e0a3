"""The model that writes prompts: which one it is, and what each of its answers counts for.

Knows language models, a budget and a journal; knows nothing of how a prompt optimizer asks. Every call is a distinct
one (nothing is cached), is reserved before it is sent, and is kept: a pull that was killed and is run again asks
nothing twice, reads the same answers, and is charged for them as it was.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15

from colever.config import ProposerSettings
from colever.engines.calls import current_call, stable_seed
from colever.engines.remote import RemoteEngine
from colever.engines.remote_model import remote_model, without_keys
from colever.errors import ColeverError, InfrastructureError
from colever.optimizers.journal import Journal
from colever.types import Cost, digest_of

if TYPE_CHECKING:
    from colever.optimizers.budget import Budget

POLICY = "policy"
FLAG = "--prompt-model"


def open_proposer(settings: ProposerSettings, engine: Any) -> dspy.LM | None:
    """The model that ``settings.model`` names, None where it names none; ``policy`` is the policy's own ``engine``.

    Raises UsageError for a name or an address that cannot be used; an address must answer now.
    """
    if settings.model is None:
        return None
    from colever.engines.lm import engine_lm

    if settings.model.strip() != POLICY:
        engine = RemoteEngine(remote_model(settings.model, FLAG, choose=True), settings)
    return engine_lm(engine, temperature=settings.temperature, max_tokens=settings.max_tokens)


def probe(lm: dspy.LM) -> None:
    """Ask for one word. Raises UsageError where nothing comes back, before anything is spent on it.

    A model in this process is there, and is not asked: a small one may write until it is cut short.
    """
    from colever.errors import UsageError

    if _in_process(getattr(lm, "engine", None)):
        return
    try:
        answers = lm("Reply with the one word: ready")
    except Exception as error:
        raise UsageError(
            f"{FLAG}: {lm.model} does not answer: {without_keys(str(error).partition(chr(10))[0])}"
        ) from error
    if not any(str(answer).strip() for answer in answers):
        raise UsageError(f"{FLAG}: {lm.model} answers with nothing; accepted: a model that writes")


READ, WRITTEN = 2000, 400  # tokens of a call, taken for an estimate: an instruction with a few examples, and a new one


def about(lm: dspy.LM | None, calls: int) -> Cost:
    """What so many calls would cost at the model's prices, each of ``READ`` and ``WRITTEN`` tokens."""
    if lm is None or not calls:
        return Cost()
    one = Cost(proposer_calls=1, proposer_tokens=READ + WRITTEN)
    if isinstance(lm.engine, RemoteEngine):
        usage = lm15.Usage(input_tokens=READ, output_tokens=WRITTEN)
        words = lm15.Message.assistant([lm15.TextPart("")])
        request = lm15.Request(model=lm.model, messages=(lm15.Message.user([lm15.TextPart("")]),))
        response = lm15.Response(id=None, model=lm.model, message=words, finish_reason="stop", usage=usage)
        one = replace(one, dollars=lm.engine.price.cost(request, response).dollars)
    return Cost(proposer_calls=calls, proposer_tokens=calls * one.proposer_tokens, dollars=calls * one.dollars)


def counted(lm: dspy.LM, budget: Budget, journal: Path, *, seed: int = 0, policy: Any = None) -> dspy.LM:
    """``lm``, each of whose calls is charged to ``budget`` and kept in ``journal``; see ``CountedEngine``.

    ``seed``: the pull's, from which those of the calls of a model in this process follow. ``policy``: the policy's
    engine; where it is the proposer as well, its tokens count as the policy's too. An engine in this process is always
    taken for it, and then the calls must not lie within what is ``metered`` already.
    """
    engine = CountedEngine(lm, budget, journal, seed, policy)
    return dspy.LM(lm.model, engine=engine, cache=False, num_retries=0, **_sampling(lm))


def _sampling(lm: dspy.LM) -> dict[str, Any]:
    """The LM's own defaults, without its connection, which stays with it."""
    known = ("temperature", "max_tokens", "top_p", "top_k", "stop")
    found = {k: v for k, v in lm.kwargs.items() if k in known}
    if "max_tokens" not in found:
        found["max_tokens"] = lm.kwargs.get("max_completion_tokens")
    return found


@dataclass(frozen=True)
class Reply:
    """One answer as the journal has it, with what it cost."""

    text: str
    finish_reason: Any
    model: str
    cost: Cost

    @classmethod
    def of(cls, response: lm15.Response, cost: Cost) -> Reply:
        text = "".join(p.text for p in response.message.parts if isinstance(p, lm15.TextPart))
        return cls(text.encode("utf-8", "replace").decode(), response.finish_reason, response.model, cost)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reply:
        return cls(**{**data, "cost": Cost(**data["cost"])})

    def response(self) -> lm15.Response:
        message = lm15.Message.assistant([lm15.TextPart(self.text)])
        usage = lm15.Usage(total_tokens=self.cost.proposer_tokens)
        return lm15.Response(id=None, model=self.model, message=message, finish_reason=self.finish_reason, usage=usage)


class CountedEngine:
    """The engine of a counted proposer; thread-safe. A copy, deep or not, is the engine itself.

    ``failed`` is the first error after which nothing more is asked: a cap of the budget, a proposer that does not
    answer, a journal that cannot be written. It is raised at once by every later call, because prompt optimizers catch
    what a call raises and go on. ``empty``: answers without any text.
    """

    def __init__(self, lm: dspy.LM, budget: Budget, journal: Path, seed: int, policy: Any) -> None:
        self.failed: BaseException | None = None
        self.empty = 0
        self._ask, self._local = _way_to_ask(lm, policy), _in_process(getattr(lm, "engine", None))
        self._budget, self._journal, self._seed = budget, Journal(journal), seed
        self._replies = dict(self._journal.read(lambda entry: (entry["key"], Reply.from_json(entry["reply"]))))
        self._asked: Counter[str] = Counter()
        self._open = 0
        self._lock = threading.RLock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """An answer from the journal or from the model. Raises ``failed``."""
        try:
            key = self._begin(request)
            reply = self._replies.get(key) or self._new(key, request)
        except Exception as error:
            with self._lock:
                self.failed = self.failed or _fatal(error)
            if self.failed is error:
                raise
            raise self.failed from error
        with self._lock:
            self._open -= 1
            self._budget.charge(reply.cost)
            self.empty += not reply.text.strip()
        return reply.response()

    def _begin(self, request: lm15.Request) -> str:
        """Reserve the call, beside those under way; the key of its reply."""
        content = digest_of(json.loads(json.dumps(asdict(replace(request, model="any")), default=str)))
        with self._lock:
            if self.failed is not None:
                raise self.failed
            self._budget.reserve(proposer_calls=self._open + 1)
            self._open += 1
            self._asked[content] += 1
            return f"{content}-{self._asked[content] - 1}"

    def _new(self, key: str, request: lm15.Request) -> Reply:
        if self._local:  # its answers follow from their seeds: from this pull's, not from what was asked before it
            request = replace(request, config=replace(request.config, seed=stable_seed("proposer", self._seed, key)))
        token = current_call.set(None)  # no rollout's step, wherever it is asked from
        try:
            reply = self._ask(request)
        finally:
            current_call.reset(token)
        with self._lock:
            self._replies[key] = reply
            self._journal.write({"key": key, "reply": asdict(reply)})
        return reply

    def stream(self, request: lm15.Request) -> Any:
        raise lm15.UnsupportedFeatureError("a counted proposer is not streamed")

    def __copy__(self) -> CountedEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CountedEngine:
        return self


def _way_to_ask(lm: dspy.LM, policy: Any) -> Callable[[lm15.Request], Reply]:
    """How ``lm`` answers and what that costs: by an API's prices, by its engine's meter, or by its usage alone."""
    engine = getattr(lm, "engine", None)
    if isinstance(engine, RemoteEngine):
        return lambda request: _priced(engine, request, own=engine is policy)
    if _in_process(engine):
        lock = threading.Lock()
        return lambda request: _metered(engine, request, lock)
    return lambda request: _reported(lm, request)


def _in_process(engine: Any) -> bool:
    return hasattr(engine, "meter") and not isinstance(engine, RemoteEngine)


def _priced(engine: RemoteEngine, request: lm15.Request, *, own: bool) -> Reply:
    response, cost = engine.ask(request)
    both = cost.prompt_tokens + cost.completion_tokens
    shown = cost if own else Cost(dollars=cost.dollars)
    return Reply.of(response, replace(shown, proposer_calls=1, proposer_tokens=both))


def _metered(engine: Any, request: lm15.Request, lock: threading.Lock) -> Reply:
    """One call at a time, so that the meter tells what it cost."""
    with lock:
        before = engine.meter
        response = engine.complete(request)
        cost = engine.meter - before
    both = (response.usage.input_tokens or 0) + (response.usage.output_tokens or 0)
    return Reply.of(response, replace(cost, proposer_calls=1, proposer_tokens=both))


def _reported(lm: dspy.LM, request: lm15.Request) -> Reply:
    """A ``dspy.LM`` of the caller's own."""
    with dspy.context(callbacks=[], usage_tracker=None, send_stream=None, disable_history=True):
        response: lm15.Response = lm(request=request, cache=False)
    both = (response.usage.input_tokens or 0) + (response.usage.output_tokens or 0)
    return Reply.of(response, Cost(proposer_calls=1, proposer_tokens=both))


def _fatal(error: Exception) -> BaseException:
    """What ends the pull: ours as it is, anything else as the proposer's failure."""
    if isinstance(error, ColeverError):
        return error
    said = without_keys(str(error).partition("\n")[0])
    return InfrastructureError(f"the proposer failed: {type(error).__name__}: {said}")
