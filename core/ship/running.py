"""The program that a server has at the moment, and how another takes its place. Knows bundles; nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from colever.errors import ColeverError, InfrastructureError, StoreError
from colever.ship.layout import CODE
from colever.ship.opened import Bundle, open_bundle
from colever.ship.program import ShippedProgram, engine_of
from colever.ship.tasks import task_of
from colever.ship.weights import digest_at


class Running:
    """One folder's program. ``options`` go to the engine, which goes on serving a bundle on the same model."""

    def __init__(
        self,
        folder: Path | str,
        *,
        trust_code: bool = False,
        model: str | None = None,
        data: str | None = None,
        say: Callable[[str], None] = print,
        **options: Any,
    ) -> None:
        self.folder, self.say = Path(folder).absolute(), say
        self._trust, self._model, self._data, self._options = trust_code, model, data, options
        self.reloads = 0
        self.broken = ""  # why nothing can be answered
        self.program = self._made(open_bundle(self.folder), None)
        self._load(self.program)

    @property
    def name(self) -> str:
        """What OpenAI's clients call it."""
        return self.program.bundle.manifest.study

    def read(self) -> ShippedProgram:
        """What the folder holds now, checked and ready. Raises ColeverError; the program at hand stays."""
        bundle, before = open_bundle(self.folder), self.program.bundle
        if _code(bundle) != _code(before) and _code(before):
            raise StoreError(f"the code in {self.folder / CODE} is another: start the server again")
        same = bundle.manifest.model == before.manifest.model and not (bundle.checkpoint or before.checkpoint)
        return self._made(bundle, self.program.engine if same else None)

    def put(self, program: ShippedProgram) -> None:
        """Let it answer from now on. Nobody may be asking. Raises ColeverError where it cannot: all stays."""
        before = self.program
        try:
            self._load(program)
        except ColeverError:
            if program.engine is before.engine:
                self._restore(before)
            raise
        self.program, self.broken = program, ""
        self.reloads += 1

    def _made(self, bundle: Bundle, engine: Any) -> ShippedProgram:
        task = task_of(bundle, self._data, self._trust)
        engine = engine or engine_of(bundle, self._model, **self._options)
        return ShippedProgram(bundle, task, engine, trusted=self._trust)

    def _load(self, program: ShippedProgram) -> None:
        """The weights, now: what is wrong with them is told before anybody asks."""
        program.engine.load(program.candidate.weights)

    def _restore(self, program: ShippedProgram) -> None:
        """The weights before, if the folder has them still: most likely it holds those that did not fit."""
        had = program.candidate.weights
        try:
            if had.path and had.kind != "base" and digest_at(Path(had.path), had.kind) != had.digest:
                raise StoreError(f"{had.path} holds other weights by now")
            self._load(program)
        except InfrastructureError as error:
            self.broken = f"neither the new weights nor the ones before could be loaded: {error}"
            raise


def _code(bundle: Bundle) -> dict[str, str]:
    return {path: file.sha256 for path, file in bundle.manifest.files.items() if path.startswith(f"{CODE}/")}
