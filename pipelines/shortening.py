"""Each call's prompt once more, under other prompts: the token ids that the same call would have been asked with.

Knows DSPy's signatures and how an engine makes token ids of messages; nothing of weights, levers or scores. The second
prompt is made where the first one is, of the very values that the program passed, and is kept under the first one's
token ids: what a step is given later belongs to exactly the prompt that was sampled, or is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from colever.engines.calls import CallRecorder, predictor_name
from colever.types import Completion, PredictorPrompt

Messages = Sequence[Mapping[str, Any]]


class ShortPrompts:
    """The other prompts, by predictor; ``render``: an engine's prompt token ids of an adapter's messages.

    A predictor that they leave out, or that the program makes as it runs, keeps the prompt that it has.
    """

    def __init__(self, prompts: Mapping[str, PredictorPrompt], render: Callable[[Messages], tuple[int, ...]]) -> None:
        self._prompts, self._render = prompts, render
        self._demos = {name: [dspy.Example(**demo) for demo in p.demos] for name, p in prompts.items()}
        self._signatures: dict[tuple[str, Any], Any] = {}

    def prompt_of(self, predictor: str) -> PredictorPrompt | None:
        """The other prompt, for who makes the ids himself; None where there is none."""
        return self._prompts.get(predictor)

    def keep(
        self, recorder: CallRecorder, messages: Messages, signature: Any, formatted: Callable[[Any, list], Messages]
    ) -> None:
        """Note the ids of the call under way; ``formatted``: its messages with another signature and other demos."""
        module = dspy.settings.caller_modules[-1] if dspy.settings.caller_modules else None
        name = predictor_name(recorder.program, module)
        if recorder.short_ids is None or name not in self._prompts:
            return
        short = formatted(self._signature(name, signature), self._demos[name])
        recorder.short_ids[id(module), self._render(messages)] = self._render(short)

    def _signature(self, name: str, signature: Any) -> Any:
        """With the other instruction; made once, so that the adapter's own notes of a signature are used again."""
        made = self._signatures.get((name, signature))
        if made is None:
            made = self._signatures[name, signature] = signature.with_instructions(self._prompts[name].instructions)
        return made


def short_ids(recorder: CallRecorder, module: object, predictor: str, completion: Completion) -> tuple[int, ...]:
    """A step's ids under the other prompts: its own where no predictor asked; () if none were kept, or asked for."""
    if recorder.short_ids is None:
        return ()
    kept = recorder.short_ids.get((id(module), completion.prompt_ids))
    if kept is None:
        return () if predictor else completion.prompt_ids
    return kept
