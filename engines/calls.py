"""Who is calling: the record that follows one rollout through its threads into the engine.

Knows nothing of models; a rollout sets ``current_call`` around a program run and the engine appends to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from colever.types import Completion


@dataclass(eq=False)
class CallRecorder:
    """The completions of one rollout, each with the DSPy module that asked for it (None: a bare call)."""

    seed_key: tuple[object, ...]
    completions: list[tuple[object, Completion]] = field(default_factory=list)
    calls: int = 0  # requests made so far, answered or not
    order: int = 0  # the rollout's place in its run: orders the batches
    session: Any = None  # the Session that gathers its requests; None outside one
    program: Any = None  # the rollout's own copy, which names its predictors
    inputs: Mapping[str, Any] = field(default_factory=dict)  # those of the example that the rollout is of
    unparsed: set[int] = field(default_factory=set)  # places in ``completions`` that could not be parsed
    drifted: set[int] = field(default_factory=set)  # places whose prompt has an earlier answer in other tokens
    asked: Mapping[str, Any] = field(default_factory=dict)  # the fields of the call under way
    before: int = 0  # completions before that call: its engine adds to them, or the adapter does
    fields: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)  # by place: in and out
    # By caller and prompt ids: the call's prompt ids under other prompts; None: nobody asked for them.
    short_ids: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] | None = None

    def next_seed(self) -> int:
        """The seed of this rollout's next request: a function of ``seed_key`` and the count of earlier ones."""
        seed = stable_seed(*self.seed_key, self.calls)
        self.calls += 1
        return seed


def predictor_name(program: Any, module: object) -> str:
    """What the program calls one of its predictors; "" for one that it makes as it runs."""
    return next((name for name, predictor in program.named_predictors() if predictor is module), "")


def stable_seed(*parts: object) -> int:
    """A 64-bit hash of JSON-able ``parts``, the same in every process."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


current_call: ContextVar[CallRecorder | None] = ContextVar("current_call", default=None)
