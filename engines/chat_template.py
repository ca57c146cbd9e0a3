"""Chat messages → the text and the token ids that a model reads, by its tokenizer's own template.

Knows a tokenizer and a template; no weights, no requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

MOST = 4096  # prompts whose ids are kept
_PROBE = "a_tool_that_is_asked_for"


class ChatTemplate:
    """``variables``: further ones of the template."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any]) -> None:
        self._tokenizer, self._variables = tokenizer, dict(variables)
        self._ids: dict[tuple, tuple[int, ...]] = {}

    def text(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt, the assistant's opening included. Raises what the template raises."""
        offered: Any = {"tools": list(tools)} if tools else {}
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **offered, **self._variables
            )
        )

    def ids(self, text: str) -> tuple[int, ...]:
        """Of a text that is a prompt or a part of one; a template's signs are read as such wherever they stand."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Ids of plain messages (``role``, ``content``)."""
        key = tuple((m["role"], m["content"]) for m in messages)
        ids = self._ids.get(key)
        if ids is None:
            ids = self.ids(self.text(messages))
            if len(self._ids) >= MOST:
                self._ids.clear()
            self._ids[key] = ids
        return ids

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template shows tools that it is given."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {"type": "object"}}}
        try:
            return _PROBE in self.text([{"role": "user", "content": "?"}], [tool])
        except Exception:  # noqa: BLE001 - the boundary to a template: one that raises knows none
            return False
