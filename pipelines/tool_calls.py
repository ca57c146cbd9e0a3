"""Tools as OpenAI's clients have them, and as models write them: from a request to a chat template and back.

Knows messages and text; no tokens, no servers. A model calls a tool as Hermes and Qwen do, by
``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. A completion is read whole or not at all: where a block is not
closed, holds no JSON or names no tool, all of it is plain text, which the agent gets as the model wrote it, and its
step counts as one that could not be parsed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colever.errors import UsageError
from colever.pipelines.openai_chat import Message, text_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
ROLES = ("system", "developer", "user", "assistant", "tool")
_BLOCK = re.compile(re.escape(OPEN) + r"\s*(.*?)\s*" + re.escape(CLOSE), re.DOTALL)
_INTRODUCED = (
    "\n\nYou may call these tools:\n{tools}\n\nTo call one, write a JSON object with its name and arguments:\n"
    '<tool_call>\n{{"name": "…", "arguments": {{…}}}}\n</tool_call>'
)


@dataclass(frozen=True)
class Said:
    """What a completion says: ``content``, then calls as (name, arguments as JSON). ``broken``: calls that are none."""

    content: str
    calls: tuple[tuple[str, str], ...] = ()
    broken: bool = False

    def message(self, number: int) -> Message:
        """As OpenAI's clients get it; ``number`` tells its calls from those of the rollout's other answers."""
        message: Message = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        if self.calls:
            message["tool_calls"] = [
                {"id": f"call_{number}_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for i, (name, arguments) in enumerate(self.calls)
            ]
        return message


def said(text: str, tools: bool) -> Said:
    """A completion read; without ``tools`` it is text whatever it holds."""
    if not tools or OPEN not in text:
        return Said(text)
    content, blocks = text[: text.index(OPEN)].rstrip(), _BLOCK.findall(text)
    calls = [_call(block) for block in blocks]
    if None in calls or len(calls) < text.count(OPEN):
        return Said(text, broken=True)
    return Said(content, tuple(call for call in calls if call is not None))


def _call(block: str) -> tuple[str, str] | None:
    try:
        given = json.loads(block)
    except (ValueError, RecursionError):
        return None
    arguments = given.get("arguments", {}) if isinstance(given, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A request's messages with nothing but what a template reads. Raises UsageError."""
    if not messages:
        raise UsageError("messages: accepted: at least one")
    return [_checked(m) for m in messages]


def _checked(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UsageError(f"role {role!r}; accepted: {', '.join(ROLES)}")
    made: Message = {"role": "system" if role == "developer" else role, "content": ""}
    if content is not None or role != "assistant":
        made["content"] = text_of(content)
    if role == "assistant" and message.get("tool_calls"):
        made["tool_calls"] = [_checked_call(call) for call in message["tool_calls"]]
    if role == "tool":
        made |= {key: str(message[key]) for key in ("tool_call_id", "name") if message.get(key)}
    return made


def _checked_call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("tool_calls: accepted: objects with function.name and function.arguments")
    arguments = function.get("arguments") or "{}"
    with contextlib.suppress(ValueError):  # as it was written, then
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    named = {"id": str(call["id"])} if call.get("id") else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def checked_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that a request offers; none with ``tool_choice="none"``. Raises UsageError for what is not done."""
    for key, fine in (("logprobs", (None, False)), ("functions", (None,)), ("audio", (None,))):
        if body.get(key) not in fine:
            raise UsageError(f"{key}: not done here; accepted: none of it")
    if (body.get("response_format") or {"type": "text"}).get("type") != "text":
        raise UsageError("response_format: accepted: text; ask for a form in the prompt")
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise UsageError(f"tool_choice: {choice!r}; accepted: auto, none (no model can be made to call a tool here)")
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise UsageError("tools: accepted: a list of {'type': 'function', 'function': {'name': …, 'parameters': …}}")
    return [] if choice == "none" else tools


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def spelled_out(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same for a template that knows no tools: all in the system message and in plain turns."""
    made = [_spelled(message) for message in messages]
    if not tools:
        return made
    if made[0]["role"] != "system":
        made.insert(0, {"role": "system", "content": ""})
    listed = "\n".join(json.dumps(tool["function"]) for tool in tools)
    made[0] = {"role": "system", "content": (made[0]["content"] + _INTRODUCED.format(tools=listed)).lstrip()}
    return made


def _spelled(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    called = [f"{OPEN}\n{json.dumps(call['function'])}\n{CLOSE}" for call in message.get("tool_calls", ())]
    text = "\n".join([message["content"], *called] if message["content"] else called)
    return {"role": message["role"], "content": text if called else message["content"]}
