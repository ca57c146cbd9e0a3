"""The engine whose sampler is a vLLM server: DSPy requests in, completions out; the model in this process is trained.

Knows what the in-process engine knows, whose tokens, template, names and weights it takes; and which adapters the
server has. A completion is asked for by the name of the weights that the model in this process holds at that moment.
A name is used for one state of the weights and never again, so no answer can be of an older state.

Departures from the in-process engine: no rollout waits for another one's answer, since the server makes up its batches
step by step; and what a request draws depends on its seed, but its last bits on what ran beside it.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from colever.engines.direct_session import DirectSession
from colever.engines.generation import ModelShape, TokenRequest
from colever.engines.live_adapters import configs_in, write_adapter
from colever.engines.prefix_store import causal
from colever.engines.transformers import Stores, TransformersEngine
from colever.engines.vllm_client import Client, Gone, Refused, Sampled
from colever.engines.vllm_given import GivenServer
from colever.engines.vllm_server import Live, Serving, StartedServer
from colever.errors import InfrastructureError, UsageError
from colever.types import Completion, Weights, digest_of

TRIES = 4  # of one request, before it is an infrastructure failure
WIDE = 256  # requests of one ``generate`` that are open at once
CLOSE = {"float32": 0.05}  # between two log-probabilities of the same token under the same weights, if they are
HALF = 0.5  # the same in half precision
PROBE_HEAT = 2.0  # temperature of the probe: at 1 a server that leaves it out would not be found


@dataclass(frozen=True)
class Served:
    """What the server has of the weights that this process holds: their ``version``, and a name by PEFT's (or None)."""

    live: Live
    version: str
    names: dict[str | None, str]


class VllmEngine(TransformersEngine):
    """As ``TransformersEngine``, but that a server samples: it is started by the first ``load`` or request.

    Raises UsageError where there is no vLLM, and for a model or settings that the server could not follow.
    """

    trains_in_place = False
    served_peft: tuple[str, ...] | None = ("lora",)

    def __init__(self, model: str | Path, *, serving: Serving | None = None, **options: Any) -> None:
        serving = serving or Serving()
        super().__init__(model, **options)
        if self.quantized:
            raise UsageError(
                f"model {self.name}: its base is quantized here, and the server would sample from other weights; "
                "accepted with engine.kind=vllm: a checkpoint that is not quantized"
            )
        self.server = self._vllm(serving)
        self._shape = ModelShape.of(self.model)
        self._folder = Path(tempfile.mkdtemp(prefix="colever-adapters-"))
        self._served: Served | None = None
        self._older: list[str] = []  # adapters of the version before, which requests under way may still name
        weakref.finalize(self, _end, self.server, self._folder)

    def _vllm(self, serving: Serving) -> Any:
        how = (self.source, self.device.type, self.dtype)
        return GivenServer(serving) if serving.url else StartedServer(serving, *how)

    @property
    def adapters_only(self) -> bool:
        """Full weights cannot be swapped into a server that runs."""
        return True

    @cached_property
    def digest(self) -> str:
        """Identity for store keys: as in process, and that vLLM samples, in which version."""
        return digest_of([super().digest, "vllm", self.server.vllm_version])

    def load(self, weights: Weights) -> None:
        """Swap ``weights`` in here, and start the server if there is none; it gets them with the next request.

        Raises UsageError for full weights, InfrastructureError where the server does not come up.
        """
        if weights.kind == "full" and self.adapters_only:
            raise UsageError(
                f"weights {weights.digest} are full weights, which a vLLM server that runs cannot swap in; accepted "
                "with engine.kind=vllm: base weights and LoRA adapters (weights.peft=lora)"
            )
        super().load(weights)
        self.context = min(self.context, self.server.ensure().context)

    # --- sampling ------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[TokenRequest], stores: Stores | None = None) -> list[Completion]:
        """Complete all requests, side by side; the result of each depends on it and the weights, to float rounding."""
        if not requests:
            return []
        with ThreadPoolExecutor(min(WIDE, len(requests))) as pool:
            return list(pool.map(self.answer, requests))

    def answer(self, request: TokenRequest) -> Completion:
        """One completion. Raises InfrastructureError once the server has failed ``TRIES`` times on it."""
        request, said = self._fitted(request), ""
        for _ in range(TRIES):
            try:
                served, sampled = self._asked(request)
            except Gone as error:
                said = str(error)
                continue
            self._book_sampled(request, sampled)
            output = sampled.output
            return Completion(
                self._text(output, request), request.prompt_ids, output.ids, output.logprobs, output.finish_reason,
                served.version,
            )  # fmt: skip
        raise InfrastructureError(f"the vLLM server failed {TRIES} times on one request, the last time: {said}")

    def _asked(self, request: TokenRequest) -> tuple[Served, Sampled]:
        """One try. Raises Gone where another one may do, after what was lost is known to be."""
        served = self._sync()
        name = served.names[self.adapters.name_of(request.predictor) if self.adapters else None]
        try:
            return served, served.live.client.sample(name, request, self.end_ids)
        except Gone as error:
            self.server.lost(served.live, str(error))
            raise
        except Refused as error:
            if error.status != 404:
                raise InfrastructureError(f"the vLLM server refused a request: {error}") from error
            with self._lock:  # it forgot an adapter, as one that was started again has
                if self._served is served:
                    self._served = None
            raise Gone(str(error)) from error

    def _book_sampled(self, request: TokenRequest, sampled: Sampled) -> None:
        """What the server computed: a prompt's tokens in its prefix cache are not."""
        prompt = len(request.prompt_ids)
        pairs = causal(prompt) - causal(prompt - sampled.computed)
        self.book(self._shape.cost(sampled.computed, pairs, 1, [request], [sampled.output]))

    @contextmanager
    def session(self, live: int) -> Iterator[Any]:
        """Requests of ``live`` concurrent rollouts, see ``DirectSession``."""
        session = DirectSession(self.answer, live)
        try:
            yield session
        except BaseException as error:
            session.close(error)
            raise

    # --- weights at the server -----------------------------------------------------------------------

    def _sync(self) -> Served:
        """The server, with the weights that this process holds loaded into it under names of their own. Raises Gone."""
        with self._lock:
            configs = configs_in(self.model)
            live = self.server.ensure(max((c.r for c in configs.values()), default=0))
            served = self._served
            if served is not None and served.version == self.version and served.live is live:
                return served
            fresh = served is None or served.live is not live
            self.context = min(self.context, live.context)
            try:
                served = Served(live, self.version, self._loaded(live, configs))
                if fresh:
                    self._probe(served)
            except Gone as error:
                self.server.lost(live, str(error))
                raise
            except Refused as error:
                raise UsageError(f"the vLLM server refused an adapter: {error}") from error
            self._served = served
            return served

    def _loaded(self, live: Live, configs: Any) -> dict[str | None, str]:
        """Load every adapter that is in the model; the name of each at the server. Raises Gone, Refused, OSError."""
        if not configs:
            return {None: live.base}
        older, self._older = self._older, []
        for name in older:
            _forget(live.client, name)
            shutil.rmtree(self._folder / name, ignore_errors=True)
        names: dict[str | None, str] = {}
        for peft_name in configs:
            name = f"colever-{uuid.uuid4().hex}"
            write_adapter(self.model, peft_name, self._folder / name)
            live.client.load_adapter(name, self._folder / name)
            names[peft_name] = name
            self._older.append(name)
        return names if self.adapters else {None: names[next(iter(configs))]}

    def _probe(self, served: Served) -> None:
        """A few tokens from the server must be as probable as here. Raises UsageError where they are not, and Gone."""
        prompt = self.render([{"role": "user", "content": "12 + 30 = ?"}])
        key = next(iter(served.names))
        if self.adapters is not None:
            self.adapters.activate(next(p for p, name in self.adapters.names.items() if name == key))
        request = TokenRequest(prompt, 4, PROBE_HEAT)
        made = served.live.client.sample(served.names[key], request, self.end_ids).output
        ids = torch.tensor([[*prompt, *made.ids]], device=self.device)
        with torch.no_grad():
            logits = self.model(ids).logits[0, len(prompt) - 1 : -1].float().cpu()
        there, close = torch.tensor(made.logprobs), CLOSE.get(self.dtype, HALF)
        here, untempered = (
            (logits / heat).log_softmax(-1).gather(1, torch.tensor(made.ids)[:, None])[:, 0]
            for heat in (PROBE_HEAT, 1.0)
        )
        if float((here - there).abs().max()) <= close:
            return
        if float((untempered - there).abs().max()) <= close:
            raise UsageError(
                "the vLLM server gives log-probabilities without temperature; accepted: one started with "
                "--logprobs-mode processed_logprobs"
            )
        raise UsageError(
            f"the vLLM server has other weights than model {self.name}: a token's log-probability is "
            f"{float(there[0]):.3f} there and {float(here[0]):.3f} here; accepted: a server of the same checkpoint"
        )

    # --- DSPy's engine interface ---------------------------------------------------------------------

    def close(self) -> None:
        """Stop the server that was started here."""
        self.server.close()

    @classmethod
    def load_state(cls, state: Any) -> TransformersEngine:
        """A program that was saved is answered in process: the server was the study's."""
        return TransformersEngine.load_state(state)


def _forget(client: Client, name: str) -> None:
    try:
        client.unload_adapter(name)
    except (Gone, Refused):
        return  # a server that was started again never had it


def _end(server: Any, folder: Path) -> None:
    server.close()
    shutil.rmtree(folder, ignore_errors=True)
