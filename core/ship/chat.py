"""OpenAI's chat format on a program: what a request asks of it, and its answer in that form. Knows JSON alone.

The last user message is the program's one input, or JSON of its inputs where it takes several. The answer is the text
of one field, or JSON of all fields. Decoding is the candidate's own: temperature and the like are not read.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from colever.errors import UsageError
from colever.ship.guarded import parse_json


def inputs_of(body: Any, fields: Sequence[str]) -> dict[str, Any]:
    """The program's inputs. Raises UsageError that says what is accepted."""
    messages = body.get("messages") if isinstance(body, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise UsageError("messages: accepted: a list of objects with role and content")
    if body.get("n") not in (None, 1):
        raise UsageError("n: accepted: 1")
    asked = [m for m in messages if m.get("role") == "user"]
    if not asked:
        raise UsageError("messages: accepted: at least one whose role is user")
    text = _text(asked[-1].get("content"))
    if len(fields) == 1:
        return {fields[0]: text}
    try:
        given = parse_json(text.encode())
    except ValueError as error:
        raise UsageError(f"the last user message {error}; accepted: JSON with {', '.join(fields)}") from None
    return checked(given, fields)


def checked(given: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Exactly the program's inputs. Raises UsageError."""
    if not isinstance(given, Mapping) or set(given) != set(fields):
        raise UsageError(f"accepted: an object with {', '.join(fields)}")
    return dict(given)


def content_of(outputs: Mapping[str, Any], field: str = "") -> str:
    """What the assistant says: the field's text, the only field's, or all as JSON. Raises UsageError."""
    if field and field not in outputs:
        raise UsageError(f"--answer {field}: the program's answer has {', '.join(outputs)}")
    value = outputs[field] if field else next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def completion(model: str, content: str, tokens: tuple[int, int]) -> dict[str, Any]:
    """One choice; ``tokens``: those read and those written by all calls of the program."""
    read, written = tokens
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def as_stream(made: Mapping[str, Any]) -> str:
    """The same as server-sent events, in one piece: a program is done before its answer is known."""
    said = made["choices"][0]["message"]
    deltas: list[tuple[dict[str, Any], str | None]] = [(dict(said), None), ({}, "stop")]
    head = {key: made[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    events = [
        json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}, ensure_ascii=False)
        for delta, reason in deltas
    ]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    said: list[str] = []
    for part in content if isinstance(content, list) else [None]:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise UsageError("content: accepted: a text, or a list of parts of type text")
        said.append(text)
    return "".join(said)
