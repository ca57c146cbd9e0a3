"""The in-process engine: DSPy requests in, completions out, on a Hugging Face model.

Knows messages, tokens and weights; no programs, no tasks, no scores. It implements DSPy's ``Engine``
(``complete``); the tokens of each completion go to the ``CallRecorder`` of the rollout that asked.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import dspy
import torch
from dspy import lm15

from colever.engines.adapters import PredictorAdapters
from colever.engines.base_model import (
    DTYPES,
    QUANTIZATIONS,
    batch_tokens,
    checkpoint_files,
    context_length,
    end_ids,
    open_model,
)
from colever.engines.calls import CallRecorder, current_call, predictor_name, stable_seed
from colever.engines.chat_template import ChatTemplate
from colever.engines.generation import Generator, TokenOutput, TokenRequest
from colever.engines.memory import naming_memory
from colever.engines.named import NamedWeights
from colever.engines.prefix_store import PrefixStore
from colever.engines.session import Gatherer, Session
from colever.engines.weights import WeightSwap, file_digest
from colever.errors import InfrastructureError, UsageError
from colever.types import Completion, Cost, Weights, digest_of

Stores = dict[str | None, PrefixStore]  # by the predictor whose adapter made them; None: all share the weights


class TransformersEngine:
    """One causal language model, loaded once; thread-safe. A copy, deep or not, is the engine itself.

    Raises UsageError if the model, device or dtype cannot be used.
    """

    trains_in_place = True  # the weight lever trains ``model`` itself: no copy of it samples
    served_peft: tuple[str, ...] | None = None  # what ``weights.peft`` may be, None: anything, since no other samples
    counts_calls = True  # of each rollout, whether they are answered or not

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantization: str = "none",  # nf4: the linear layers in 4 bit, on which adapters alone are trained
        max_batch_tokens: int = 0,  # of requests that run together; 0: see ``batch_tokens``
        template: Mapping[str, Any] | None = None,  # further variables of the chat template
        name: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}; accepted: {', '.join(DTYPES)}")
        if quantization not in QUANTIZATIONS:
            raise UsageError(f"quantization {quantization!r}; accepted: {', '.join(QUANTIZATIONS)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.source = str(model)
        self.name = name or self.source
        self.dtype, self.quantization = dtype, quantization
        self.template = {"enable_thinking": False, **(template or {})}
        self.model, self.tokenizer = open_model(self.source, DTYPES[dtype], device, quantization=quantization)
        self.device = next(self.model.parameters()).device
        self.chat = ChatTemplate(self.tokenizer, self.template)
        self.context = context_length(self.model.config.get_text_config())
        self.end_ids = end_ids(self.model, self.tokenizer)
        self._weights = WeightSwap(self.model, self._read_base, frozen=self.quantized)
        self.named = NamedWeights(self.name, self.load)
        most = max_batch_tokens or batch_tokens(self.model)
        self._generator = Generator(self.model, self.end_ids, self._decode, most)
        self._gatherer = Gatherer(self.generate)
        self._lock = threading.RLock()
        self._cost = Cost()
        self._bare_calls = itertools.count()

    # --- weights ---------------------------------------------------------------------------------

    @property
    def quantized(self) -> bool:
        """Whether the base weights are, here or in the checkpoint: then adapters alone can be trained on them."""
        return bool(getattr(self.model, "is_quantized", False))

    @property
    def adapters_only(self) -> bool:
        """Whether weights other than the base are adapters, and nothing else can be trained."""
        return self.quantized

    @property
    def version(self) -> str:
        """Of the weights in the model now; changes with every load and every update in place."""
        return self._weights.version

    @property
    def weights(self) -> Weights:
        """What was loaded last."""
        return self._weights.loaded

    @property
    def adapter(self) -> Any:
        """The trainable ``PeftModel`` around ``model`` while LoRA weights are loaded, else None."""
        return self._weights.adapter

    @property
    def adapters(self) -> PredictorAdapters | None:
        """The same where every predictor has an adapter of its own, else None."""
        return self._weights.by_predictor

    def one_adapter_each(self, predictors: Sequence[str], config: Any) -> PredictorAdapters:
        """See ``WeightSwap.one_each``."""
        with self._lock:
            return self._weights.one_each(predictors, config)

    @cached_property
    def digest(self) -> str:
        """Identity for store keys: configuration, base weights, tokenizer, template, dtype and kind of device."""
        config = self.model.config.to_dict()
        for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(volatile, None)
        files = checkpoint_files(self.source)
        words = self.tokenizer.backend_tokenizer.to_str() + str(self.tokenizer.chat_template)
        return digest_of(
            [
                str(sorted(config.items(), key=str)),
                file_digest(files) if files else self.source,
                digest_of(words),
                self.template,
                self.dtype,
                self.device.type,
                *([self.quantization, version("bitsandbytes")] if self.quantization != "none" else []),
            ]
        )

    def load(self, weights: Weights) -> None:
        """Swap ``weights`` in, in place; nothing happens if they are there, untouched."""
        with self._lock:
            self._weights.load(weights)

    def touched(self) -> None:
        """Say that the model was changed in place: a new version, and the next ``load`` reloads."""
        with self._lock:
            self._weights.touched()

    def rest(self) -> None:
        """Said before the model is trained for a while: nothing, where it is the model that samples."""

    def _read_base(self) -> Mapping[str, torch.Tensor]:
        model, _ = open_model(self.source, DTYPES[self.dtype], "cpu", tokenizer=False)
        return model.state_dict()

    # --- tokens ----------------------------------------------------------------------------------

    @property
    def meter(self) -> Cost:
        """Running totals since the engine was made, sampling and training in place: tokens computed and FLOPs."""
        return self._cost

    def book(self, cost: Cost) -> None:
        """Add to ``meter`` what others did with the model: its training in place."""
        with self._lock:
            self._cost = self._cost + cost

    def generate(self, requests: Sequence[TokenRequest], stores: Stores | None = None) -> list[Completion]:
        """Complete all requests; the result of each depends on it and the weights alone (to float rounding).

        ``stores`` are a session's, by adapter: what they hold of the requests' prompts is not computed again.
        """
        with self._lock:
            version = self.version
            with naming_memory(self._out_of_memory):
                outputs = self._run([self._fitted(r) for r in requests], {} if stores is None else stores)
        return [
            Completion(self._text(o, r), r.prompt_ids, o.ids, o.logprobs, o.finish_reason, version)
            for r, o in zip(requests, outputs, strict=True)
        ]

    def _run(self, requests: Sequence[TokenRequest], stores: Stores) -> list[TokenOutput]:
        """All together, or predictor by predictor where each has an adapter of its own."""
        if self.adapters is None:
            groups: Iterable[Sequence[int]] = [range(len(requests))] if requests else []
        else:
            groups = self.adapters.each([r.predictor for r in requests])
        made: dict[int, TokenOutput] = {}
        for places in groups:
            store = stores.setdefault(requests[places[0]].predictor, self._generator.store())
            store.begin(self.version)
            outputs, cost = self._generator.run([requests[i] for i in places], store)
            self._cost = self._cost + cost
            made.update(zip(places, outputs, strict=True))
        return [made[i] for i in range(len(requests))]

    def _out_of_memory(self, said: str) -> InfrastructureError:
        most = self._generator.max_batch_tokens
        return InfrastructureError(
            f"out of memory while sampling ({said}). Try a smaller engine.max_batch_tokens (now {most}), the tokens of "
            "the requests that run together"
        )

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Prompt token ids of chat messages (``role``, ``content``), the assistant's opening included."""
        return self.chat.render(messages)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """What ``complete`` would read of a DSPy adapter's messages, which go through DSPy's own conversion."""
        body = {"model": self.name, "messages": [dict(m) for m in messages]}
        return self.render(_messages(lm15.request_from_openai_chat(body)))

    def _fitted(self, request: TokenRequest) -> TokenRequest:
        room = self.context - len(request.prompt_ids)
        if request.max_tokens <= room:
            return request
        if room < 1:
            raise lm15.ContextLengthError(
                f"the prompt has {len(request.prompt_ids)} tokens, the model takes {self.context} with the answer"
            )
        return TokenRequest(**{**vars(request), "max_tokens": room})

    def _text(self, output: TokenOutput, request: TokenRequest) -> str:
        ids = output.ids
        text = self._decode(ids[:-1] if ids and ids[-1] in self.end_ids else ids)
        cuts = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else text

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def gather_whole(self) -> None:
        """From now on calls outside a session wait for one another, as the many threads of a server want it."""
        self._gatherer = Gatherer(self.generate, settle=True, rejoin=True)

    # --- DSPy's engine interface -----------------------------------------------------------------

    def complete(self, request: lm15.Request) -> lm15.Response:
        """One completion; blocks until the batch that it is in ran. Raises lm15 errors."""
        recorder, prompt_ids = current_call.get(), self.render(_messages(request))
        completion = self.complete_ids(prompt_ids, request.config, request.model)
        usage = lm15.Usage(input_tokens=len(prompt_ids), output_tokens=len(completion.completion_ids))
        # Inside a rollout the recorder has the finish reason; DSPy would log a warning per truncated completion.
        finish = completion.finish_reason if recorder is None else "stop"
        message = lm15.Message.assistant([lm15.TextPart(completion.text)])
        return lm15.Response(id=None, model=request.model, message=message, finish_reason=finish, usage=usage)

    def complete_ids(self, prompt_ids: tuple[int, ...], config: lm15.Config, model: str) -> Completion:
        """The same behind exactly these ids, by the weights that ``model`` names, with its own ids."""
        recorder = current_call.get()
        if len(prompt_ids) >= self.context:  # here, so that it fails its own rollout and not the batch
            self._fitted(TokenRequest(prompt_ids, 1))
        inside = recorder is not None and recorder.session is not None  # where others wait for this request
        with self.named.turn(model, may_wait=not inside):
            return self._bare(prompt_ids, config) if recorder is None else self._recorded(prompt_ids, config, recorder)

    def _bare(self, prompt_ids: tuple[int, ...], config: lm15.Config) -> Completion:
        seed = config.seed
        if seed is None:
            seed = stable_seed("bare", next(self._bare_calls))
        modules = dspy.settings.caller_modules or [None]
        try:
            predictor = self._predictor(modules[0], modules[-1])
        except UsageError as error:
            raise lm15.InvalidRequestError(str(error)) from error
        return self._gatherer.request(_token_request(prompt_ids, config, seed, predictor))

    def _recorded(self, prompt_ids: tuple[int, ...], config: lm15.Config, recorder: CallRecorder) -> Completion:
        modules = dspy.settings.caller_modules
        seed = recorder.next_seed()
        predictor = self._predictor(recorder.program, modules[-1] if modules else None)
        wanted = _token_request(prompt_ids, config, seed, predictor)
        if recorder.session is None:
            completion = self._gatherer.request(wanted)
        else:
            completion = recorder.session.request(recorder, (recorder.order, recorder.calls), wanted)
        recorder.completions.append((modules[-1] if modules else None, completion))
        return completion

    def _predictor(self, program: Any, module: object) -> str | None:
        """Whose adapter answers a call, None where all share the weights. Raises UsageError if it has none."""
        if self.adapters is None:
            return None
        name = predictor_name(program, module) if program is not None and module is not None else None
        self.adapters.name_of(name)  # here, so that it fails its own rollout and not the batch
        return name

    @contextmanager
    def session(self, live: int) -> Iterator[Session]:
        """Batches for ``live`` concurrent rollouts, see ``Session``."""
        stores: Stores = {}
        session = Session(lambda requests: self.generate(requests, stores), live)
        try:
            yield session
        except BaseException as error:
            session.close(error)
            raise

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        raise lm15.UnsupportedFeatureError("the transformers engine does not stream")

    def close(self) -> None:
        """Nothing to close: the model is freed with the engine."""

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` makes an equal engine of; weights that have a name are said by where they lie."""
        how = {"model": self.source, "dtype": self.dtype, "name": self.name, "quantization": self.quantization}
        return {**how, "weights": self.named.dump()}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> TransformersEngine:
        """An engine on that state; one model serves all the predictors of all programs that are loaded."""
        key = (state["model"], state["dtype"], state["name"], state.get("quantization", "none"))
        engine = _restored.get(key)
        if engine is None:
            engine = cls(key[0], dtype=key[1], name=key[2], quantization=key[3])
            _restored[key] = engine
            engine.named.unnamed = Weights()
        engine.named.restore(state.get("weights", []))
        return engine

    def __copy__(self) -> TransformersEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersEngine:
        return self


_restored: WeakValueDictionary[tuple[str, ...], TransformersEngine] = WeakValueDictionary()


def _messages(request: lm15.Request) -> list[dict[str, str]]:
    messages = []
    if request.system is not None:
        messages.append({"role": "system", "content": _joined(request.system)})
    messages.extend({"role": m.role, "content": _joined(m.parts)} for m in request.messages)
    return messages


def _joined(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    odd = [type(p).__name__ for p in parts if not isinstance(p, lm15.TextPart)]
    if odd:
        raise lm15.UnsupportedFeatureError(f"the transformers engine reads text only, not {odd[0]}")
    return "".join(p.text for p in parts)


def _token_request(prompt_ids: tuple[int, ...], config: lm15.Config, seed: int, predictor: str | None) -> TokenRequest:
    temperature = 0.0 if config.temperature is None else config.temperature
    stop = tuple(config.stop)
    return TokenRequest(
        prompt_ids, config.max_tokens or 256, temperature, config.top_p, config.top_k, stop, seed, predictor
    )
