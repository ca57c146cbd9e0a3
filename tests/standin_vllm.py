"""A stand-in for vLLM's server, for faults that a real one cannot be made to have when a test wants them.

It speaks the few requests that Colever makes and answers with an engine in this process, so ids and log-probabilities
are real; that they are vLLM's is tried in ``slow/test_vllm.py``. As a script, behind a python that is a shell script
(``shim``), it is a server process without a model: it starts, waits, and dies as its environment says.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.0.standin"


class StandIn:
    """``with StandIn(engine) as server:`` … ``server.url``.

    ``faults`` are used up by requests for completions, one each: ``"500"``, ``"drop"`` (no reply), ``"odd"`` (no JSON),
    ``"other"`` (a reply under another name), ``"forget"`` (its adapters, as a server that was started again).
    """

    def __init__(self, engine: Any = None, *, adapters: bool = True, tempered: bool = True) -> None:
        self.engine, self.adapters, self.tempered = engine, adapters, tempered
        self.faults: list[str] = []
        self.loaded: dict[str, Path] = {}
        self.asked: list[dict[str, Any]] = []
        self._lock, self._closed = threading.Lock(), False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StandIn:
        return self.start(0)

    def start(self, port: int) -> StandIn:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True  # for connections that are kept open
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self._closed:
            return 0, ""
        if path == "/version":
            return 200, {"version": VERSION}
        if path == "/v1/models":
            bases = [{"id": "base", "parent": None, "max_model_len": 512}]
            return 200, {"data": bases + [{"id": name, "parent": "base"} for name in self.loaded]}
        if path == "/v1/load_lora_adapter" and self.adapters:
            return self._load(body)
        if path == "/v1/unload_lora_adapter" and self.adapters:
            self.loaded.pop(body["lora_name"], None)
            return 200, "Success"
        if path == "/v1/completions":
            with self._lock:
                return self._complete(body)
        return (200, "") if path == "/health" else (404, {"detail": "Not Found"})

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not body["lora_name"]:
            return 400, {"error": {"message": "Both 'lora_name' and 'lora_path' must be provided."}}
        self.loaded[body["lora_name"]] = Path(body["lora_path"])
        return 200, "Success"

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        from colever.engines.generation import TokenRequest
        from colever.types import Weights

        self.asked.append(body)
        fault, name = self.faults.pop(0) if self.faults else "", body["model"]
        if fault == "forget":
            self.loaded.clear()
        if fault in ("500", "drop", "odd"):
            return {"500": (500, {"error": {"message": "EngineCore died"}}), "drop": (0, ""), "odd": (200, "?")}[fault]
        if name != "base" and name not in self.loaded:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        self.engine.load(Weights() if name == "base" else Weights("lora", str(self.loaded[name]), name))
        request = TokenRequest(
            tuple(body["prompt"]), body["max_tokens"], body["temperature"], stop=tuple(body["stop"]), seed=body["seed"]
        )
        (made,) = self.engine.generate([request])
        logprobs = made.logprobs if self.tempered else self._at_temperature_1(made)
        choice = {
            "token_ids": list(made.completion_ids), "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": list(logprobs)}, "finish_reason": made.finish_reason,
        }  # fmt: skip
        usage = {"prompt_tokens_details": {"cached_tokens": len(body["prompt"]) // 2}}
        return 200, {"model": "other" if fault == "other" else name, "choices": [choice], "usage": usage}

    def _at_temperature_1(self, made: Any) -> list[float]:
        import torch

        ids = torch.tensor([[*made.prompt_ids, *made.completion_ids]])
        rows = self.engine.model(ids).logits[0, len(made.prompt_ids) - 1 : -1].log_softmax(-1)
        return [row[i].item() for row, i in zip(rows, made.completion_ids, strict=True)]


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(*server.answer(self.path, {}))

        def do_POST(self) -> None:
            self._send(*server.answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _send(self, status: int, value: Any) -> None:
            if not status:
                self.close_connection = True
                return
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


def shim(folder: Path, **environment: str) -> str:
    """A python that has vLLM, as it seems; ``environment`` says what its server does, see ``main``."""
    file = folder / "python-with-vllm"
    told = " ".join(f"{name}='{value}'" for name, value in environment.items())
    quick = "" if "STANDIN_MODEL" in environment else "-S"
    file.write_text(f'#!/bin/sh\nexec env {told} {sys.executable} {quick} {__file__} "$@"\n')
    file.chmod(0o755)
    return str(file)


def _model() -> Any:
    if folder := os.environ.get("STANDIN_MODEL"):
        from colever.engines.lm import open_engine

        return open_engine(folder)
    return None


def main(arguments: list[str], sleep: Callable[[float], None] = time.sleep) -> None:
    """What ``python`` does with these arguments: say a version, or serve until killed.

    STANDIN_FAILS: say this and end with status 1; STANDIN_FOREVER: never be ready; STANDIN_CHILD: a file that gets the
    process ids of the server and of a child that it leaves running. STANDIN_MODEL: a checkpoint that it answers with.
    """
    if arguments[0] == "-c":
        print(os.environ.get("STANDIN_VERSION", VERSION))
        return
    if words := os.environ.get("STANDIN_FAILS"):
        sys.exit(words)
    if file := os.environ.get("STANDIN_CHILD"):
        child = os.fork() or sleep(600)
        Path(file).write_text(f"{os.getpid()} {child}")
    if not os.environ.get("STANDIN_FOREVER"):
        StandIn(_model()).start(int(arguments[arguments.index("--port") + 1]))
    while True:
        sleep(600)


if __name__ == "__main__":
    main(sys.argv[1:])
