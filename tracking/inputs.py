"""A task's splits as the datasets of an MLflow run: name, digest, size, fields; no examples are copied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colever.split import Split

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log_inputs(client: MlflowClient, run_id: str, task: str, splits: Sequence[Split]) -> None:
    """The splits as inputs of the run, each in the context of its name. Told twice, they are there once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=f"{task} {split.name}",
                digest=split.digest,
                source_type="code",
                source=json.dumps({"tags": {"mlflow.source.name": task}}),
                schema=json.dumps({"mlflow_colspec": [{"name": n, "type": "string"} for n in split.fields]}),
                profile=json.dumps({"num_rows": split.examples}),
            ),
            [InputTag("mlflow.data.context", split.name)],
        )
        for split in splits
    ]
    if inputs:
        client.log_inputs(run_id, inputs)
