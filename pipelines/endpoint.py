"""Where agents ask: OpenAI's chat endpoint on loopback, one for the process, with a key for each rollout.

    POST /v1/chat/completions   a request goes to the rollout whose key it has, which answers it
    GET  /v1/models             the one model; whatever name a request gives is that

Knows HTTP and keys; no models, no prompts. A key that is no rollout's, or of one that has ended, is refused with 401.
Refusals and failures tell OpenAI's clients not to try again: a second try would be a second sample. A client that hangs
up before its answer is there is told to the rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from colever.errors import InfrastructureError
from colever.pipelines.openai_chat import as_stream, error_body

MOST = 64 << 20  # bytes of a request
FILES = 4096  # that the process may have open: each run that asks has a socket at both ends
NO_RETRY = {"x-should-retry": "false"}
CLOSE = {"connection": "close"}  # agents leave their clients open: hundreds of runs would hold thousands of sockets


@dataclass
class Asked:
    """One request, and how it is answered: once, from any thread. ``settled`` is set when it is known who heard it."""

    body: Any
    _loop: asyncio.AbstractEventLoop
    _reply: asyncio.Future[tuple[int, dict[str, Any]]]
    settled: threading.Event = field(default_factory=threading.Event)
    hung_up: bool = False  # the client did not wait for its answer

    def answer(self, status: int, body: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the process ends, and the loop with it
            self._loop.call_soon_threadsafe(self._settle, status, body)

    def refuse(self, status: int, text: str, code: str | None = None) -> None:
        self.answer(status, error_body(status, text, code))

    def _settle(self, status: int, body: dict[str, Any]) -> None:
        if not self._reply.done():
            self._reply.set_result((status, body))


Tell = Callable[[Asked], None]


@dataclass
class Endpoint:
    """The server; ``opened`` gives out keys."""

    model: str = "policy"
    _live: dict[str, Tell] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _port: int = 0

    @contextmanager
    def opened(self, tell: Tell) -> Iterator[tuple[str, str]]:
        """Address and key of one rollout while the block runs; ``tell`` gets its requests, in the server's thread."""
        address, key = f"http://127.0.0.1:{self._started()}/v1", f"colever-{secrets.token_urlsafe(24)}"
        with self._lock:
            self._live[key] = tell
        try:
            yield address, key
        finally:
            with self._lock:
                del self._live[key]

    def _started(self) -> int:
        """The port; the server is started by the first rollout. Raises InfrastructureError."""
        with self._lock:
            if not self._port:
                self._port = _serve(self._app())
            return self._port

    def _app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
            ],
            exception_handlers={404: _nowhere, 405: _nowhere},
        )

    async def _models(self, request: Any) -> Any:
        if self._tell(request) is None:
            return _unknown()
        listed = {"id": self.model, "object": "model", "created": 0, "owned_by": "colever"}
        return _json(200, {"object": "list", "data": [listed]})

    async def _chat(self, request: Any) -> Any:
        if self._tell(request) is None:
            return _unknown()
        try:
            body = await _body(request)
        except ValueError as error:
            return _json(400, error_body(400, f"the body {error}"))
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[tuple[int, dict[str, Any]]] = loop.create_future()
        asked = Asked(body, loop, reply)
        with self._lock:  # nothing is told to a rollout that has ended: nobody would answer
            if (tell := self._tell(request)) is None:
                return _unknown()
            tell(asked)
        asked.hung_up = not await _answered(request, reply)
        asked.settled.set()
        if asked.hung_up:
            return _json(499, error_body(499, "the client hung up"))
        status, made = reply.result()
        if status == 200 and isinstance(body, dict) and body.get("stream"):
            return _stream(made, bool((body.get("stream_options") or {}).get("include_usage")))
        return _json(status, made)

    def _tell(self, request: Any) -> Tell | None:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        return self._live.get(key.strip()) if kind.lower() == "bearer" else None


async def _body(request: Any) -> Any:
    """Raises ValueError."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST:
            raise ValueError(f"is longer than {MOST:,} bytes")
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None


async def _answered(request: Any, reply: asyncio.Future[Any]) -> bool:
    """Whether the answer was there before the client was gone."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({gone, reply}, return_when=asyncio.FIRST_COMPLETED)
        return not gone.done()
    finally:
        gone.cancel()


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(status: int, body: dict[str, Any]) -> Any:
    from starlette.responses import Response

    content = json.dumps(body)  # ASCII: a model may write half of a surrogate pair
    return Response(content, status, {**CLOSE, **(NO_RETRY if status >= 400 else {})}, "application/json")


def _stream(made: dict[str, Any], usage: bool) -> Any:
    from starlette.responses import Response

    return Response(as_stream(made, usage).encode(errors="replace"), 200, CLOSE, "text/event-stream")


def _unknown() -> Any:
    return _json(401, error_body(401, "no rollout has this key: it is none, or its rollout has ended"))


async def _nowhere(request: Any, error: Any) -> Any:
    said = "accepted: POST /v1/chat/completions, GET /v1/models"
    return _json(error.status_code, error_body(error.status_code, said))


def _serve(app: Any) -> int:
    """Start it in a thread of its own; the port that it has. Raises InfrastructureError."""
    import uvicorn

    _allow_files()
    try:
        place = socket.create_server(("127.0.0.1", 0), backlog=2048)
    except OSError as error:
        raise InfrastructureError(f"no endpoint for agents can be opened on 127.0.0.1: {error}") from error
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, server_header=False, lifespan="off", backlog=2048,
    )  # fmt: skip
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True, name="agents-endpoint").start()
    return int(place.getsockname()[1])


def _allow_files() -> None:
    """As many open files as are needed, where the system lets a process say so itself."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
        if now != resource.RLIM_INFINITY and now < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


ENDPOINT = Endpoint()
