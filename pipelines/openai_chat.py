"""OpenAI's chat format: a completion as JSON or as a stream of events, an error, the text of a message.

Knows JSON alone; no servers, no models.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from colever.errors import UsageError

Message = dict[str, Any]  # role, content, tool_calls, tool_call_id


def completion(model: str, message: Mapping[str, Any], finish: str, tokens: tuple[int, int]) -> dict[str, Any]:
    """One choice; ``tokens``: those read and those written."""
    read, written = tokens
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": dict(message), "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def as_stream(made: Mapping[str, Any], usage: bool = False) -> str:
    """The same as server-sent events, in one piece: it is known as a whole. ``usage``: its counts as a last chunk."""
    choice = made["choices"][0]
    said = {key: value for key, value in choice["message"].items() if key != "tool_calls"}
    if calls := choice["message"].get("tool_calls"):
        said["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
    head = {key: made[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    deltas: list[tuple[dict[str, Any], str | None]] = [(said, None), ({}, choice["finish_reason"])]
    chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": reason}]} for d, reason in deltas]
    if usage:
        chunks.append({**head, "choices": [], "usage": made["usage"]})
    events = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])


def error_body(status: int, text: str, code: str | int | None = None) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": text, "type": kind, "param": None, "code": status if code is None else code}}


def messages_of(body: Any) -> Sequence[Mapping[str, Any]]:
    """The messages of a request that asks for one choice. Raises UsageError that says what is accepted."""
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise UsageError("messages: accepted: a list of objects with role and content")
    if body.get("n") not in (None, 1):
        raise UsageError("n: accepted: 1")
    return messages


def text_of(content: Any) -> str:
    """A message's content as text. Raises UsageError for pictures and the like."""
    if isinstance(content, str):
        return content
    said: list[str] = []
    for part in content if isinstance(content, list) else [None]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise UsageError("content: accepted: a text, or a list of parts of type text")
        said.append(text)
    return "".join(said)
