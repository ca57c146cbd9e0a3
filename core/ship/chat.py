"""OpenAI's chat format on a program: what a request asks of it, and its answer in that form. Knows JSON alone.

The last user message is the program's one input, or JSON of its inputs where it takes several. The answer is the text
of one field, or JSON of all fields. Decoding is the candidate's own: temperature and the like are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from colever.errors import UsageError
from colever.pipelines import openai_chat
from colever.pipelines.openai_chat import as_stream, messages_of, text_of
from colever.ship.guarded import parse_json

__all__ = ["as_stream", "checked", "completion", "content_of", "inputs_of"]


def inputs_of(body: Any, fields: Sequence[str]) -> dict[str, Any]:
    """The program's inputs. Raises UsageError that says what is accepted."""
    asked = [m for m in messages_of(body) if m.get("role") == "user"]
    if not asked:
        raise UsageError("messages: accepted: at least one whose role is user")
    text = text_of(asked[-1].get("content"))
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
    return openai_chat.completion(model, {"role": "assistant", "content": content}, "stop", tokens)
