"""DSPy's ChatAdapter as rollouts use it: no second try in JSON, and a note of each call's fields and of what failed."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from colever.engines.calls import CallRecorder, current_call
from colever.pipelines.shortening import ShortPrompts
from colever.types import Completion


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
            recorder.asked, recorder.before = inputs, len(recorder.completions)
            if self.short is not None:
                again = super().format
                self.short.keep(recorder, messages, signature, lambda *other: again(*other, inputs))
        return messages

    def _call_postprocess(
        self, processed_signature: Any, original_signature: Any, outputs: list, lm: Any, lm_kwargs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        recorder = current_call.get()
        if recorder is not None and len(recorder.completions) == recorder.before:
            _note(recorder, outputs)
        try:
            values = super()._call_postprocess(processed_signature, original_signature, outputs, lm, lm_kwargs)
        except AdapterParseError:
            if recorder is not None:
                place = len(recorder.completions) - 1
                recorder.unparsed.add(place)
                recorder.fields[place] = recorder.asked, {}
            raise
        if recorder is not None:
            recorder.fields[len(recorder.completions) - 1] = recorder.asked, values[0]
        return values


def _note(recorder: CallRecorder, outputs: list) -> None:
    """The answers of an engine that keeps no record of its own: their text alone."""
    modules = dspy.settings.caller_modules
    for output in outputs:
        text = (output.get("text") if isinstance(output, dict) else output) or ""
        recorder.completions.append((modules[-1] if modules else None, Completion(text, (), (), (), "stop", "")))
