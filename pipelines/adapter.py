"""DSPy's ChatAdapter as rollouts use it: no second try in JSON, and a note of each call's fields and of what failed."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from colever.engines.calls import current_call
from colever.pipelines.shortening import ShortPrompts


class RolloutAdapter(dspy.ChatAdapter):
    """Formats and parses exactly as ``dspy.ChatAdapter(use_json_adapter_fallback=False)``; one per run.

    ``short``: prompts under which each call is formatted a second time, for its token ids.
    """

    def __init__(self, short: ShortPrompts | None = None) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self.short = short
        self._systems: dict[Any, str] = {}
        self._demos: dict[tuple, tuple[Any, list]] = {}

    def format_system_message(self, signature: Any) -> str:
        """The same text for every rollout: made once per signature."""
        text = self._systems.get(signature)
        if text is None:
            text = self._systems[signature] = super().format_system_message(signature)
        return text

    def format_demos(self, signature: Any, demos: list) -> list[dict[str, Any]]:
        """The same messages for every rollout: made once per signature and list of demo objects."""
        key = (signature, *map(id, demos))
        known = self._demos.get(key)
        if known is None:
            if len(self._demos) >= 256:
                self._demos.clear()
            known = self._demos[key] = (list(demos), super().format_demos(signature, demos))  # keeps the ids alive
        return [dict(message) for message in known[1]]

    def format(self, signature: Any, demos: list, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        messages = super().format(signature, demos, inputs)
        if (recorder := current_call.get()) is not None:
            recorder.asked = inputs
            if self.short is not None:
                again = super().format
                self.short.keep(recorder, messages, signature, lambda *other: again(*other, inputs))
        return messages

    def _call_postprocess(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        recorder = current_call.get()
        answered = recorder is not None and bool(recorder.completions)
        try:
            values = super()._call_postprocess(*args, **kwargs)
        except AdapterParseError:
            if recorder is not None and answered:
                place = len(recorder.completions) - 1
                recorder.unparsed.add(place)
                recorder.fields[place] = recorder.asked, {}
            raise
        if recorder is not None and answered:
            recorder.fields[len(recorder.completions) - 1] = recorder.asked, values[0]
        return values
