"""What is said to a vLLM server over HTTP: completions of token ids, adapters by name, what it serves.

Knows requests, replies and connections, which are kept open and shared by threads; knows no model and starts nothing.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from colever.engines.generation import TokenOutput, TokenRequest

PATIENCE = 900.0  # seconds that an answer may take
IDLE = 3.0  # seconds after which a connection is not used again: servers close them after five
SEEDS = 2**63 - 1  # vLLM takes seeds of 63 bits


class Gone(Exception):
    """The server did not answer, or answered that it is broken; another try may do."""


class Refused(Exception):
    """The server answered that it will not: ``status`` is HTTP's."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


@dataclass(frozen=True)
class Sampled:
    """A completion, and how many tokens of its prompt the server computed: those in its prefix cache are none."""

    output: TokenOutput
    computed: int


class Client(Protocol):
    """What is asked of vLLM, wherever it runs; see ``VllmClient``."""

    def sample(self, model: str, request: TokenRequest, end_ids: Iterable[int]) -> Sampled: ...

    def load_adapter(self, name: str, folder: Path) -> None: ...

    def unload_adapter(self, name: str) -> None: ...

    def healthy(self) -> bool: ...

    def close(self) -> None: ...


class VllmClient:
    """Thread-safe. ``address``: scheme, host and port, with or without ``/v1``."""

    def __init__(self, address: str, key: str) -> None:
        parts = urlsplit(address.rstrip("/").removesuffix("/v1"))
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._path = parts.netloc, parts.path
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._lock = threading.Lock()

    # --- what is asked -------------------------------------------------------------------------------

    def sample(self, model: str, request: TokenRequest, end_ids: Iterable[int]) -> Sampled:
        """One completion by the model or adapter of that name. Raises Gone and Refused.

        Raises Gone too where the reply is of another name or prompt, or is no completion.
        """
        reply = self.post("/v1/completions", body_of(model, request, end_ids))
        try:
            (choice,), usage = reply["choices"], reply["usage"]
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            finish: Literal["stop", "length"] = "stop" if choice["finish_reason"] == "stop" else "length"
            same = reply["model"] == model and tuple(choice["prompt_token_ids"]) == request.prompt_ids
            output = TokenOutput(tuple(map(int, ids)), tuple(map(float, logprobs)), finish)
        except (LookupError, TypeError, ValueError) as error:
            raise Gone(f"a reply that is no completion with token ids: {error!r}") from error
        if not same:
            raise Gone(f"a reply of {reply['model']!r} or of another prompt, to a request for {model!r}")
        if choice["finish_reason"] not in ("stop", "length") or not 0 < len(output.ids) == len(output.logprobs):
            raise Gone(f"a reply that was not finished ({choice['finish_reason']}, {len(output.ids)} tokens)")
        return Sampled(output, len(request.prompt_ids) - int(cached))

    def models(self) -> list[dict[str, Any]]:
        """What it serves, adapters included. Raises Gone and Refused."""
        try:
            return [dict(model, id=str(model["id"])) for model in self.get("/v1/models")["data"]]
        except (LookupError, TypeError, ValueError) as error:
            raise Gone(f"no list of models: {error!r}") from error

    def version(self) -> str:
        """vLLM's. Raises Gone and Refused."""
        try:
            return str(self.get("/version")["version"])
        except (LookupError, TypeError) as error:
            raise Gone(f"no version: {error!r}") from error

    def healthy(self) -> bool:
        try:
            self._ask("GET", "/health", None, 5.0)
        except (Gone, Refused):
            return False
        return True

    def load_adapter(self, name: str, folder: Path) -> None:
        """Under a name that was never used, from a folder that was never read. Raises Gone and Refused.

        vLLM 0.32 reads an adapter that was loaded with ``load_inplace`` anew in every step, and keeps what its prefix
        cache holds of the same name and folder.
        """
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        """Raises Gone and Refused."""
        self.post("/v1/unload_lora_adapter", {"lora_name": name})

    # --- how -----------------------------------------------------------------------------------------

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return _read(self._ask("POST", path, json.dumps(body).encode(), PATIENCE))

    def get(self, path: str) -> Any:
        return _read(self._ask("GET", path, None, 10.0))

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _ask(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        connection = self._kept() or self._connect(self._host, timeout=timeout)
        try:
            connection.timeout = timeout
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            connection.request(method, self._path + path, body, self.headers)
            reply = connection.getresponse()
            status, said = reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Gone(f"{type(error).__name__}: {error}") from error
        with self._lock:
            self._idle.append((time.monotonic(), connection))
        if status >= 500:
            raise Gone(f"{status}: {_message(said)}")
        if status >= 400:
            raise Refused(status, _message(said))
        return said

    def _kept(self) -> http.client.HTTPConnection | None:
        """An open connection that was used a moment ago."""
        with self._lock:
            while self._idle:
                used, connection = self._idle.pop()
                if time.monotonic() - used < IDLE:
                    return connection
                connection.close()
        return None


def body_of(model: str, request: TokenRequest, end_ids: Iterable[int]) -> dict[str, Any]:
    """A request as ``/v1/completions`` has it: ids in, ids and log-probabilities out, no default of the server's own.

    Log-probabilities are those of a server with ``--logprobs-mode processed_logprobs``: temperature applied.
    """
    return {
        "model": model, "prompt": list(request.prompt_ids), "max_tokens": request.max_tokens,
        "temperature": max(0.0, request.temperature), "seed": request.seed & SEEDS, "logprobs": 0,
        "return_token_ids": True, "stop_token_ids": sorted(end_ids), "stop": list(request.stop),
        "skip_special_tokens": False, "repetition_penalty": 1.0, "min_p": 0.0,
        "top_p": 1.0 if request.top_p is None else request.top_p, "top_k": request.top_k or 0,
    }  # fmt: skip


def _read(said: bytes) -> Any:
    """JSON, or the text of those replies that are none."""
    try:
        return json.loads(said)
    except ValueError:
        return said.decode(errors="replace")


def _message(said: bytes) -> str:
    """What an error reply says, on one line."""
    reply = _read(said)
    inner = reply.get("error", reply) if isinstance(reply, dict) else reply
    text = str(inner.get("message") or inner.get("detail") or inner) if isinstance(inner, dict) else str(inner)
    return " ".join(text.split())[:500]
