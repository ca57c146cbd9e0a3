"""A bundle over HTTP: OpenAI's chat endpoint, plain JSON, health, reload. Knows starlette and uvicorn.

    POST /predict               {"problem": "3 + 4 * 2"} -> {"outputs": {…}, "usage": {…}}
    POST /v1/chat/completions   the last user message -> the answer; GET /v1/models
    GET  /health                200 while it answers; POST /reload (or SIGHUP) reads the folder again

Each request runs the program in a thread of its own, and the engine gathers the calls of all of them into batches.
Nothing that is asked or answered is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dspy.utils.exceptions import AdapterParseError, LMError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from colever.errors import ColeverError, InfrastructureError, UsageError
from colever.pipelines.openai_chat import error_body
from colever.ship import chat
from colever.ship.gate import Busy, Gate, Limits
from colever.ship.guarded import parse_json
from colever.ship.program import Answered
from colever.ship.running import Running

__all__ = ["Limits", "make_app", "serve"]

Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The endpoints around one program that may be changed for another."""

    def __init__(self, running: Running, limits: Limits, token: str = "", answer: str = "") -> None:
        self.running, self.limits, self.field = running, limits, answer
        self._token = hashlib.sha256(token.encode()).digest() if token else b""
        self._gate = Gate(limits)
        self._threads = ThreadPoolExecutor(limits.concurrent, thread_name_prefix="request")
        self._reloading = asyncio.Lock()
        self._left: set[asyncio.Task[Any]] = set()

    def app(self, hosts: list[str] | None = None) -> Starlette:
        """``hosts``: the names under which it may be asked; None: any."""
        routes = [
            Route("/health", self._guarded(self.health), methods=["GET"]),
            Route("/predict", self._guarded(self.predict, token=True), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self.chat, token=True), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models, token=True), methods=["GET"]),
            Route("/reload", self._guarded(self.reload, token=True), methods=["POST"]),
        ]
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []
        return Starlette(routes=routes, middleware=middleware, lifespan=self._life)

    # --- endpoints -------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """Numbers to those who have the token; to everybody whether it answers."""
        broken = self.running.broken
        said: dict[str, Any] = {"status": "broken" if broken else "ok"}
        if self._may(request):
            program = self.running.program.bundle.manifest
            said |= {"study": program.study, "candidate": program.candidate, "reloads": self.running.reloads}
            said |= {"running": self._gate.running, "waiting": self._gate.waiting, "why": broken}
        return JSONResponse(said, 503 if broken else 200)

    async def models(self, request: Request) -> Response:
        listed = {"id": self.running.name, "object": "model", "created": 0, "owned_by": "colever"}
        return JSONResponse({"object": "list", "data": [listed]})

    async def predict(self, request: Request) -> Response:
        made = await self._answered(request, lambda body, fields: chat.checked(body, fields))
        return JSONResponse({"outputs": dict(made.outputs), "usage": _usage(made)})

    async def chat(self, request: Request) -> Response:
        body: dict[str, Any] = {}

        def inputs(given: Any, fields: list[str]) -> dict[str, Any]:
            asked = chat.inputs_of(given, fields)
            body.update(given)
            return asked

        made = await self._answered(request, inputs)
        content = chat.content_of(made.outputs, self.field)
        said = chat.completion(self.running.name, content, (made.prompt_tokens, made.completion_tokens))
        if body.get("stream"):
            return Response(chat.as_stream(said), media_type="text/event-stream")
        return JSONResponse(said)

    async def reload(self, request: Request) -> Response:
        try:
            await self.read_again()
        except ColeverError as error:
            return _error(409, str(error))
        return JSONResponse({"status": "ok", "candidate": self.running.program.bundle.manifest.candidate})

    async def read_again(self) -> None:
        """Put what the folder holds now in the program's place, between requests. Raises ColeverError: all stays."""
        async with self._reloading:
            loop = asyncio.get_running_loop()
            fresh = await loop.run_in_executor(None, self.running.read)
            async with self._gate.emptied():
                await loop.run_in_executor(None, self.running.put, fresh)

    # --- one request -----------------------------------------------------------------------------

    async def _answered(self, request: Request, inputs: Callable[[Any, list[str]], dict[str, Any]]) -> Answered:
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(request)
                since = await self._gate.enter()
                work = asyncio.ensure_future(self._run(body, inputs, since))
                self._left.add(work)  # a thread can't be stopped: its place is taken until it is done
                work.add_done_callback(self._ended)
                return await asyncio.shield(work)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {self.limits.seconds:g} s") from None

    async def _run(self, body: Any, inputs: Callable[[Any, list[str]], dict[str, Any]], since: float) -> Answered:
        try:
            program = self.running.program
            given = inputs(body, program.inputs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, program.answer, given)
        finally:
            self._gate.leave(since)

    def _ended(self, work: asyncio.Task[Any]) -> None:
        self._left.discard(work)
        if not work.cancelled():
            work.exception()  # of one that nobody waits for any more

    async def _body(self, request: Request) -> Any:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "accepted: content-type application/json")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.limits.body:
            raise HTTPException(413, f"accepted: at most {self.limits.body:,} bytes")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > self.limits.body:
                raise HTTPException(413, f"accepted: at most {self.limits.body:,} bytes")
        try:
            return parse_json(bytes(content))
        except ValueError as error:
            raise UsageError(f"the body {error}") from None

    # --- around them -----------------------------------------------------------------------------

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        kind, _, value = given.partition(" ")
        digest = hashlib.sha256(value.strip().encode("utf-8", "surrogateescape")).digest()
        return not self._token or (hmac.compare_digest(digest, self._token) and kind.lower() == "bearer")

    def _guarded(self, handler: Handler, token: bool = False) -> Handler:
        """With every error in one form, and refused without the token where it needs one."""

        async def handle(request: Request) -> Response:
            if token and not self._may(request):
                return _error(401, "accepted: the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
            try:
                return await handler(request)
            except Busy as error:
                return _error(429, str(error), {"Retry-After": str(error.seconds)})
            except HTTPException as error:
                return _error(error.status_code, error.detail)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:  # noqa: BLE001 - the boundary to the network: told in a status, never raised
                return _error(*_said(error))

        return handle

    @contextlib.asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        """SIGHUP reloads, where this is the process's main thread."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError, AttributeError):
            loop.add_signal_handler(signal.SIGHUP, self._on_signal)
        try:
            yield
        finally:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError, AttributeError):
                loop.remove_signal_handler(signal.SIGHUP)
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _on_signal(self) -> None:
        work = asyncio.ensure_future(self.read_again())
        self._left.add(work)

        def told(done: asyncio.Task[None]) -> None:
            self._left.discard(done)
            error = None if done.cancelled() else done.exception()
            self.running.say(f"not reloaded: {error}" if error else f"reloaded {self.running.folder}")

        work.add_done_callback(told)


def make_app(running: Running, limits: Limits | None = None, token: str = "", answer: str = "") -> Starlette:
    """The application alone, for a server of one's own."""
    return Server(running, limits or Limits(), token, answer).app()


def serve(
    folder: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    answer: str = "",
    say: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Serve until interrupted. ``token`` (None: ``COLEVER_TOKEN``) is needed where others can reach ``host``.

    ``answer``: the field that chat answers with. ``options``: see ``colever.load``. Raises UsageError, StoreError.
    """
    import os

    import uvicorn

    token = os.environ.get("COLEVER_TOKEN", "") if token is None else token
    local = is_local(host)
    if not local and not token:
        raise UsageError(f"--host {host} can be reached by others: set a token in COLEVER_TOKEN (or --token)")
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise UsageError("the token: accepted: 16 or more printable ASCII characters")
    with contextlib.suppress(ValueError, AttributeError):  # no main thread, or no such signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    running = Running(folder, say=say, **options)
    server = Server(running, limits or Limits(), token, answer)
    app = server.app(["localhost", "127.0.0.1", "[::1]", host] if local else None)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=math.ceil(server.limits.seconds) + 5,
    )  # fmt: skip
    say(f"serving {running.folder} ({running.name}) on http://{host}:{port}; SIGHUP or POST /reload reads it again")
    uvicorn.Server(config).run()


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _usage(made: Answered) -> Mapping[str, int]:
    return {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens}


def _said(error: Exception) -> tuple[int, str]:
    """Status and words. Of an error that nobody foresaw, the kind alone: its text may hold anything."""
    if isinstance(error, AdapterParseError):
        return 422, f"the model's answer has not {', '.join(error.signature.output_fields)}"
    if isinstance(error, UsageError):
        return 400, str(error)
    if isinstance(error, InfrastructureError):
        return 503, str(error)
    if isinstance(error, LMError | ConnectionError):
        return 503, f"the model cannot be asked: {type(error).__name__}"
    return 500, str(error) if isinstance(error, ColeverError) else f"the program raised {type(error).__name__}"


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(error_body(status, text), status, headers=dict(headers or {}))
