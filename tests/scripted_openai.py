"""A server on loopback that speaks OpenAI's chat completions, whose replies are *scripted*: there is no model in it.

What it shows is that requests, replies, prices, time-outs and faults are handled; nothing about quality follows from a
run on it. Replies come from a function of the messages or from a list, used up in order. Faults are said per request.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Messages = list[dict[str, Any]]
Script = Callable[[Messages], str] | Sequence[str]
Kind = Literal["status", "hang", "malformed", "empty", "no choices", "reset"]


@dataclass(frozen=True)
class Fault:
    """What happens to one request in place of its reply.

    ``status``: the HTTP status, with ``retry_after`` where it is said; ``hang``: no answer for ``seconds``, then the
    connection is closed; ``malformed``: half of a JSON object; ``empty``: a reply of no text; ``no choices``: an empty
    list of them; ``reset``: the connection is reset.
    """

    kind: Kind = "status"
    status: int = 500
    retry_after: float | None = None
    seconds: float = 5.0
    message: str = "scripted fault"
    code: str | None = None


TOO_MANY, BROKEN = Fault(status=429), Fault(status=500)
HANG, MALFORMED, EMPTY, NO_CHOICES = Fault("hang"), Fault("malformed"), Fault("empty"), Fault("no choices")
RESET = Fault("reset")


@dataclass
class ScriptedOpenAI:
    """``with ScriptedOpenAI(script) as server:`` … ``server.address``, ``server.asked``.

    ``faults`` are used up one by one by the first requests (None: that one is answered); ``always`` is what happens to
    each request after them. ``asked`` holds the body of every request for a completion, answered or not, and ``keys``
    what it gave as its key. Tokens are words split at blanks, in ``usage`` as everywhere.
    """

    script: Script
    models: Sequence[str] = ("scripted",)
    faults: Iterable[Fault | None] = ()
    always: Fault | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0  # requests that were ever open together

    def __post_init__(self) -> None:
        self._faults, self._replies = list(self.faults), [] if callable(self.script) else list(self.script)
        self._lock, self._released, self._open = threading.Lock(), threading.Event(), 0

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    @property
    def prompts(self) -> list[str]:
        """The text of each request's messages."""
        return ["\n".join(str(m["content"]) for m in body["messages"]) for body in self.asked]

    def __enter__(self) -> ScriptedOpenAI:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- what the handler asks -----------------------------------------------------------------------

    def take(self, body: dict[str, Any], key: str | None) -> Fault | None:
        """Note the request; what goes wrong with it."""
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
            self._open += 1
            self.most = max(self.most, self._open)
            return self._faults.pop(0) if self._faults else self.always

    def done(self) -> None:
        with self._lock:
            self._open -= 1

    def wait(self, seconds: float) -> None:
        """Hang, at most until the server is closed."""
        self._released.wait(seconds)

    def completion(self, body: Mapping[str, Any], *, empty: bool = False, none: bool = False) -> dict[str, Any]:
        """The reply as the API has it, ``n`` choices of it."""
        texts = [] if none else ["" if empty else self._text(body["messages"]) for _ in range(body.get("n") or 1)]
        read = len(" ".join(str(m["content"]) for m in body["messages"]).split())
        wrote = sum(len(text.split()) for text in texts)
        return {
            "id": f"scripted-{len(self.asked)}", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [
                {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for i, text in enumerate(texts)
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
        }  # fmt: skip

    def _text(self, messages: Messages) -> str:
        if callable(self.script):
            return self.script(messages)
        with self._lock:
            return self._replies.pop(0)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about clients that have gone: they do so after a time-out."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(server: ScriptedOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self._send(404, {"error": {"message": f"no {self.path}"}})
                return
            self._send(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": f"no {self.path}"}})
                return
            fault = server.take(body, self.headers.get("Authorization"))
            try:
                self._reply(body, fault)
            finally:
                server.done()

        def _reply(self, body: dict[str, Any], fault: Fault | None) -> None:
            if fault is None and body["model"] not in server.models:
                fault = Fault(status=404, message=f"no model {body['model']!r}")
            if fault is None:
                self._send(200, server.completion(body))
            elif fault.kind == "status":
                after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                self._send(
                    fault.status, {"error": {"message": fault.message, "type": "scripted", "code": fault.code}}, after
                )
            elif fault.kind == "hang":
                server.wait(fault.seconds)
                self.close_connection = True
            elif fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()  # whatever else still holds it, the next byte is refused
                self.close_connection = True
            elif fault.kind == "malformed":
                self._write(200, b'{"id": "scripted", "choices": [{"mess')
            else:
                self._send(200, server.completion(body, empty=fault.kind == "empty", none=fault.kind == "no choices"))

        def _send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
            self._write(status, json.dumps(value).encode(), headers)

        def _write(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler
