"""A study's winner as something to call: ``mlflow.pyfunc.load_model("models:/arithmetic/1").predict([{…}])``.

MLflow loads it by this module's name (``_load_pyfunc``), from JSON and safetensors: nothing is unpickled. The task is
loaded by its name as everywhere; a task file, and the rows of ``--data``, must be there where the study had them. Knows
tasks and engines; no MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colever.errors import StoreError
from colever.types import Candidate, Score, read_json


class ServedProgram:
    """The task's program with the winner's prompts, on its model with the winner's weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            data = read_json(self.folder / "winner.json")
            self.name, self.model, self.engine_settings = data["task"], data["model"], dict(data["engine"])
            self.data = data.get("data")
            self.candidate = Candidate.from_json(data["candidate"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder} holds no winner of a study: {error}") from error
        if self.folder in Path(self.name.partition(":")[0]).resolve().parents:
            raise StoreError(f"{self.folder} brings its own task file, which is not run: put it elsewhere and load it")
        weights = self.candidate.weights
        if weights.path is not None:
            path = self.folder / weights.path  # stays as it is where it is absolute
            if not path.is_dir():
                raise StoreError(f"the winner's weights were too large to be copied, and {path} is gone")
            self.candidate = replace(self.candidate, weights=replace(weights, path=str(path)))
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
            from colever.config import EngineSettings, RemoteSettings
            from colever.engines.lm import open_policy
            from colever.tasks.load import load_task

            task = load_task(self.name, self.data)
            in_process = EngineSettings(**self.engine_settings | {"kind": "transformers"})
            self._opened = task, open_policy(self.model, RemoteSettings(), in_process)
        return self._opened


def _load_pyfunc(path: str) -> ServedProgram:
    """What MLflow calls with the folder ``data/winner`` of a registered model."""
    return ServedProgram(Path(path))


def _rows(rows: Any) -> Sequence[Mapping[str, Any]]:
    if hasattr(rows, "to_dict"):
        return list(rows.to_dict("records"))
    return [rows] if isinstance(rows, Mapping) else list(rows)
