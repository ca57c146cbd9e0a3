"""Weights by name on one model: what a request's model name asks for, and whose turn it is to have its weights in.

Knows names, references to weights and turns; nothing of tensors or prompts: it is handed ``load``.

``colever/<engine>`` asks for whatever the model holds, as a lever needs it while it trains in place; on an engine that
was loaded from a saved program, which others share, for the base weights.
``colever/<engine>@<digest>`` asks for those weights and no others: they are swapped in when it is their turn. So
programs on different weights can share one engine, and each goes on answering as it did, whatever is trained beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dspy import lm15

from colever.types import Weights


class NamedWeights:
    """The weights that an engine's names stand for. Requests for the same weights run together, others wait."""

    def __init__(self, name: str, load: Callable[[Weights], None]) -> None:
        self._prefix = f"colever/{name}"
        self._load = load
        self._known = {Weights().digest: Weights()}
        self.unnamed: Weights | None = None  # what a name without weights asks for; None: whatever the model holds
        self._changed = threading.Condition()
        self._running: list[Weights | None] = []  # one entry per request; None: whatever the model holds
        self._held = False

    def name(self, weights: Weights) -> str:
        """The model name that asks for ``weights`` from now on."""
        self._known[weights.digest] = weights
        return f"{self._prefix}@{weights.digest}"

    def find(self, model: str) -> Weights | None:
        """The weights that a model name asks for; None: whatever the model holds. Raises UnsupportedModelError."""
        if not model.startswith(f"{self._prefix}@"):
            return None if self._held else self.unnamed
        digest = model.removeprefix(f"{self._prefix}@")
        if digest not in self._known:
            raise lm15.UnsupportedModelError(
                f"model {model!r}: this engine knows no weights {digest!r}; accepted: {', '.join(sorted(self._known))}"
            )
        return self._known[digest]

    @contextmanager
    def turn(self, model: str, *, may_wait: bool = True) -> Iterator[None]:
        """Around a request: the weights that ``model`` asks for are in the model. Raises lm15 errors and StoreError.

        ``may_wait=False``: the requests that have the model wait for this caller, so it is refused if it needs others.
        """
        weights = self.find(model)
        with self._changed:
            while not self._fits(weights):
                self._refuse_hopeless(model, may_wait)
                self._changed.wait()
            if weights is not None and weights not in self._running:
                self._load(weights)
            self._running.append(weights)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(weights)
                self._changed.notify_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around training in place: nobody else swaps weights. Waits for its turn; not to be nested."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held and not self._running)
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def _fits(self, weights: Weights | None) -> bool:
        if weights is None:
            return True
        return not self._held and all(running == weights for running in self._running)

    def _refuse_hopeless(self, model: str, may_wait: bool) -> None:
        if self._held:
            raise lm15.InvalidRequestError(
                f"model {model!r}: the engine's weights are being trained in place, and no others can be swapped in "
                "meanwhile. Ask another engine, or end the training first (lm.kill() ends one that was abandoned)"
            )
        if not may_wait:
            raise lm15.InvalidRequestError(
                f"model {model!r}: the other rollouts of this run use other weights of the same engine; all language "
                "models of one run must use the same weights"
            )

    def dump(self) -> list[dict[str, Any]]:
        """Every named set, as JSON."""
        return [dict(vars(w)) for w in self._known.values() if w.kind != "base"]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Know again what ``dump`` gave."""
        for fields in state:
            self.name(Weights(**fields))
