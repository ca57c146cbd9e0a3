"""The winner as a version of a registered MLflow model, which loads back and predicts without a pickle.

    MLmodel, requirements.txt       how MLflow loads it: by the module ``colever.served``
    data/winner/                    a bundle (``colever.ship.layout``): manifest, prompts, rubric, weights
    data/winner/weights/            where they are small; larger ones are referred to

The model is named after the task; each study is a version of it. Knows MLflow and records; knows no tasks or engines.
"""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.config import API, EngineSettings
from colever.reported import StudyReport
from colever.ship.layout import (
    FORMAT,
    WEIGHTS,
    Manifest,
    ModelReference,
    RubricReference,
    TaskReference,
    WeightsReference,
)
from colever.ship.weights import copy_weights
from colever.ship.written import write_manifest, write_program, write_rubric
from colever.tracking.report import verdict
from colever.types import Candidate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LOADER = "colever.served"
SMALL_WEIGHTS = 16 * 2**20  # bytes; a larger set is only referred to


def register(
    client: MlflowClient, run: Run, report: StudyReport, config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Make the study's winner a version of its task's model, unless the study's latest version is that winner.

    ``config`` and ``manifest`` are the study's: rows and engine; rubric, inputs, versions and the task's digest.
    A study that ends again with another winner gets a new version; the one before is tagged as superseded.
    """
    from mlflow.entities import LoggedModelOutput

    candidate, name = report.path[-1].kept, model_name(report.task)
    earlier = _versions(client, name, run)
    if earlier and earlier[0].tags.get("digest") == candidate.digest:
        return
    tags = tags_of(report, candidate)
    plain = re.sub(r"""[/:.%"']""", "-", report.study)[:200]  # as MLflow takes it: Qwen2.5 is in a study's name
    logged = client.create_logged_model(
        run.info.experiment_id, name=plain, source_run_id=run.info.run_id, tags=tags, model_type="program"
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder), report, candidate, config, manifest)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    _ensure(client, name, report)
    made = client.create_model_version(name, logged.artifact_location, run.info.run_id, tags, model_id=logged.model_id)
    client.update_model_version(name, made.version, description(report, int(made.version)))
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, 0)])
    for old in earlier:
        client.set_model_version_tag(name, old.version, "superseded", f"version {made.version}")


def model_name(task: str) -> str:
    """The task's name as MLflow takes it: without slashes and colons; of a file its name."""
    file, _, attribute = task.rpartition(":")
    stem = f"{Path(file).stem}.{attribute}" if file else task
    return "".join(c if c.isalnum() or c in "-_. " else "-" for c in stem) or "task"


def tags_of(report: StudyReport, candidate: Candidate) -> dict[str, str]:
    """Study, schedule, base model, the digest of prompts and weights, and the score on test."""
    cell = report.parts.get("p*,w*")
    test = {"test_score": cell and cell.score, "test_gold": cell and cell.gold}
    return {
        "study": report.study,
        "schedule": report.winner,
        "base_model": report.model,
        "digest": candidate.digest,
        **{name: f"{estimate.value:.4f}" for name, estimate in test.items() if estimate},
    }


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def description(report: StudyReport, number: int) -> str:
    """The verdict, and how to use the version: lines that are read without scrolling."""
    row = next((dict(pair[0].inputs) for pair in report.rollouts.values()), {"field": "value"})
    lines = [f"import mlflow\nwinner = mlflow.pyfunc.load_model(\n    'models:/{model_name(report.task)}/{number}'\n)"]
    lines += ["winner.predict([{", *(f"    {name!r}: {_quoted(value)}," for name, value in row.items()), "}])"]
    return f"{verdict(report)}\n\n```python\n" + "\n".join(lines) + "\n```"


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else "…"


def _versions(client: MlflowClient, name: str, run: Run) -> list[ModelVersion]:
    """Of this study, the latest first."""
    found = [v for v in client.search_model_versions(f"run_id = '{run.info.run_id}'") if v.name == name]
    return sorted(found, key=lambda v: -int(v.version))


def _ensure(client: MlflowClient, name: str, report: StudyReport) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, {"task": report.task}, f"Winners of Colever's studies of {report.task}.")


def _save(
    folder: Path, report: StudyReport, candidate: Candidate, config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """``model`` as MLflow reads it. Its own ``save_model`` takes seconds to look through every installed package."""
    from mlflow.models import Model

    root = folder / "model"
    data = root / "data" / "winner"
    data.mkdir(parents=True)
    pair = next(iter(report.rollouts.values()), None)
    inputs = manifest.get("inputs") or list(pair[1].inputs if pair else ())
    _write_bundle(data, report, candidate, config, {**manifest, "inputs": inputs})
    (root / "requirements.txt").write_text(f"colever=={version('colever')}\n", encoding="utf-8")
    described = Model(signature=_signature(pair and pair[1]))
    described.add_flavor(
        "python_function", loader_module=LOADER, data="data/winner", python_version=platform.python_version()
    )
    described.save(str(root / "MLmodel"))


def _write_bundle(
    folder: Path, report: StudyReport, candidate: Candidate, config: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """What ``colever export`` writes, but for report and page, which are on the run; code is named and not carried."""
    weights, task, rubric = candidate.weights, report.task, manifest.get("rubric")
    if weights.path is not None and Path(weights.path).is_dir() and size_of(Path(weights.path)) <= SMALL_WEIGHTS:
        copy_weights(weights, folder / WEIGHTS)
        weights = replace(weights, path=WEIGHTS)
    write_program(candidate, folder)
    if rubric:
        write_rubric(rubric["text"], [Path(file) for file in rubric["files"]], folder)
    made = Manifest(
        format=FORMAT,
        study=report.study,
        which="winner",
        schedule=report.winner,
        candidate=candidate.digest,
        task=TaskReference(
            name=_absolute(task) if ":" in task or task.endswith(".py") else task,
            data=_absolute(config["data"]) if config.get("data") else None,
            digest=manifest.get("task", ""),
            inputs=manifest["inputs"],
        ),
        model=ModelReference(
            name=report.model if report.model == "seed" else _absolute(report.model),
            engine=EngineSettings(**config.get("engine", {})),
        ),
        weights=WeightsReference(kind=weights.kind, path=weights.path, digest=weights.digest),
        rubric=RubricReference(digest=rubric["digest"], code=rubric["code"]) if rubric else None,
        measured={k: float(v) for k, v in tags_of(report, candidate).items() if k in ("test_score", "test_gold")},
        versions=dict(manifest.get("versions", {})),
        files={},
    )
    write_manifest(folder, made)


def _signature(rollout: Any) -> Any:
    """Of a program that reads text only; MLflow's checks of other fields would refuse what the program takes."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if rollout is None or not all(isinstance(value, str) for value in rollout.inputs.values()):
        return None
    return ModelSignature(inputs=Schema([ColSpec("string", name) for name in rollout.inputs]))


def _absolute(name: str) -> str:
    """A file or folder by its whole path, since another process starts elsewhere; any other name as it is."""
    if name.startswith(API):
        return name
    file, sign, attribute = name.partition(":")
    return f"{Path(file).resolve()}{sign}{attribute}" if Path(file).exists() else name
