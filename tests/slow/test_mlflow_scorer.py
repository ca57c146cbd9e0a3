"""A rubric scores in MLflow's own evaluation, which takes half a minute to start."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
from test_rubric_seams import RUBRIC

from colever.tracking.scorer import rubric_scorer


@pytest.mark.slow
def test_mlflows_evaluation_runs_it(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION", "true")
    shutil.copytree(empty_home, tmp_path / "home")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{next((tmp_path / 'home').rglob('mlflow.db'))}")
    try:
        rows = [
            {"inputs": {"question": "q"}, "outputs": {"answer": answer}, "expectations": {"answer": "a"}}
            for answer in ("a", "b")
        ]
        result = mlflow.genai.evaluate(data=rows, scorers=[rubric_scorer(RUBRIC)])
        assert result.metrics["rubric/mean"] == pytest.approx(5 / 8)
        assert result.metrics["rubric/right/mean"] == pytest.approx(1 / 2)
    finally:
        mlflow.set_tracking_uri(before)
