"""Another model that a program asks and no lever changes: an expert, a translator, a server that is not trusted.

Knows a model's name and a request; its answers are kept and priced as ``engines/bench`` has it: the same request gets
the same answer, and is asked once.
"""

from __future__ import annotations

from dataclasses import dataclass

from dspy.utils.exceptions import ContextWindowExceededError

from colever.engines.bench import Question, bench
from colever.errors import InfrastructureError


@dataclass(frozen=True)
class Delegate:
    """``model``: a name such as openai/gpt-5-mini, or NAME@http://127.0.0.1:8000/v1. An attribute of a program."""

    model: str
    max_tokens: int = 1024

    def __call__(self, request: str) -> str:
        """Raises InfrastructureError where it fails or says nothing, and DSPy's own error for a request too long."""
        asked = Question(self.model, "", request, max_tokens=self.max_tokens, keep=0)
        try:
            return bench().ask(asked, lambda said: said if said.strip() else None)
        except InfrastructureError as error:
            if isinstance(error.__cause__, ContextWindowExceededError):  # what the policy wrote is what does not fit
                raise error.__cause__ from None
            raise
