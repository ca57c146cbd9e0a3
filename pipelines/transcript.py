"""The conversations of one rollout in exactly the tokens in which they took place.

Knows messages, a chat template and token ids; asks no model. An agent sends its whole conversation with every request,
as text. Rendering and tokenizing that again need not give the ids that were sampled: a tokenizer spells a text in one
way of many, JSON of a tool call is written anew, templates leave out what an earlier turn thought. So a prompt is put
together: the ids of the last earlier answer's prompt, the ids of that answer, and, newly tokenized, what the template
puts behind it. An answer is found again by the messages up to it, the system prompt and the tools included; blanks at
the ends of texts and the spelling of JSON do not count.

Where an agent has changed what stands before or in an earlier answer there is nothing to put together: the prompt is
then tokenized anew, and the call counts as *drifted*. It is trained on as it was sampled, like any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colever.engines.chat_template import ChatTemplate
from colever.pipelines.openai_chat import Message
from colever.pipelines.tool_calls import spelled_out
from colever.types import digest_of

_MARK = "colever-stands-in-for-an-answer"
Tools = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """What a request is asked with. ``drifted``: an earlier answer is in it in other tokens than it was sampled in."""

    key: str
    ids: tuple[int, ...]
    drifted: bool = False


class Transcript:
    """``ends``: texts with which the model ends an answer, by token id."""

    def __init__(self, chat: ChatTemplate, ends: dict[int, str]) -> None:
        self._chat, self._ends = chat, ends
        self._sampled: dict[str, tuple[tuple[int, ...], int | None]] = {}  # by key: prompt and answer; how it ended
        self._written: set[str] = set()  # answers that the agent itself put in, before any was sampled

    def prompt(self, messages: Sequence[Message], tools: Tools) -> Prompt:
        """The ids of a request's messages. Raises what the template raises."""
        keys = _keys(messages, tools)
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        found = next((place for place in reversed(answers) if keys[place] in self._sampled), None)
        later = [_one(messages[place]) for place in answers if found is None or place > found]
        if not self._sampled:
            self._written.update(later)
        strange = any(text not in self._written for text in later)
        ids = None if found is None else self._continued(messages, tools, found, keys[found])
        if ids is None:
            strange, ids = strange or found is not None, self._chat.ids(self._text(messages, tools))
        return Prompt(keys[-1], ids, strange)

    def add(self, prompt: Prompt, answer: Message, completion_ids: tuple[int, ...]) -> None:
        """Note what was answered to a prompt."""
        end = completion_ids[-1] if completion_ids and completion_ids[-1] in self._ends else None
        self._sampled[_next(prompt.key, answer)] = ((*prompt.ids, *completion_ids), end)

    def _continued(self, messages: Sequence[Message], tools: Tools, at: int, key: str) -> tuple[int, ...] | None:
        """The sampled ids up to the answer at ``at``, then what follows it; None if the template shows no answer."""
        sampled, end = self._sampled[key]
        if _MARK in json.dumps(messages):
            return None
        marked = [*messages[:at], {"role": "assistant", "content": _MARK}, *messages[at + 1 :]]
        try:
            text = self._text(marked, tools)
        except Exception:  # noqa: BLE001 - the boundary to a template: one may want a call before a tool's answer
            return None
        _, mark, behind = text.rpartition(_MARK)
        if not mark:
            return None
        closing = "" if end is None else self._ends[end]
        return (*sampled, *self._chat.ids(behind.removeprefix(closing)))

    def _text(self, messages: Sequence[Message], tools: Tools) -> str:
        if self._chat.knows_tools:
            return self._chat.text(messages, tools)
        return self._chat.text(spelled_out(messages, tools))


def _keys(messages: Sequence[Message], tools: Tools) -> list[str]:
    """Of each message with all before it."""
    keys, key = [], json.dumps(tools, sort_keys=True)
    for message in messages:
        key = _next(key, message)
        keys.append(key)
    return keys


def _next(key: str, message: Message) -> str:
    return digest_of([key, _one(message)])


def _one(message: Message) -> str:
    """A message as it counts when messages are compared."""
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    return json.dumps([message["role"], (message["content"] or "").strip(), calls], sort_keys=True)
