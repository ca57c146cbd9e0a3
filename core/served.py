"""A study's winner as something to call: ``mlflow.pyfunc.load_model("models:/arithmetic/1").predict([{…}])``.

MLflow loads it by this module's name (``_load_pyfunc``), from a bundle of JSON and safetensors: nothing is unpickled.
The task is loaded by its name as everywhere; a task file, and the rows of ``--data``, must be there where the study had
them. Knows bundles, tasks and engines; no MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colever.ship.opened import open_bundle
from colever.types import Score


class ServedProgram:
    """The task's program with the winner's prompts, on its model with the winner's weights."""

    def __init__(self, folder: Path) -> None:
        self.bundle = open_bundle(folder, own=True)
        self.folder, self.candidate = self.bundle.folder, self.bundle.candidate
        self._opened: tuple[Any, Any] | None = None

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer for each row of input fields: the prediction's fields, or ``{"error": why}``.

        ``rows``: a list of dicts, one dict, or a pandas data frame. Decoding is the task's own, as in an evaluation.
        """
        import dspy

        from colever.optimizers.evaluate import run_candidate

        task, engine = self._open()
        asked = [dspy.Example(**row).with_inputs(*row) for row in _rows(rows)]
        rollouts = run_candidate(
            self.candidate, task, engine, [(str(i), row) for i, row in enumerate(asked)],
            split="asked", seed=0, score=lambda example, prediction, steps: Score(0.0, {}),
        )  # fmt: skip
        return [dict(r.outputs) if r.failure is None else {"error": r.reason} for r in rollouts]

    def _open(self) -> tuple[Any, Any]:
        if self._opened is None:
            from colever.ship.program import engine_of
            from colever.ship.tasks import task_of

            self._opened = task_of(self.bundle, own=True), engine_of(self.bundle, own=True)
        return self._opened


def _load_pyfunc(path: str) -> ServedProgram:
    """What MLflow calls with the folder ``data/winner`` of a registered model."""
    return ServedProgram(Path(path))


def _rows(rows: Any) -> Sequence[Mapping[str, Any]]:
    if hasattr(rows, "to_dict"):
        return list(rows.to_dict("records"))
    return [rows] if isinstance(rows, Mapping) else list(rows)
