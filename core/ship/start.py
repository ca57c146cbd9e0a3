"""The candidate that a study begins with: the task's own program, or a bundle's. Knows bundles and the home folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colever.errors import StoreError, UsageError
from colever.ship.models import model_digest
from colever.ship.opened import open_bundle
from colever.ship.weights import copy_weights
from colever.ship.written import written
from colever.types import Candidate

if TYPE_CHECKING:
    from colever.tasks.task import Task


def starting(start: str | None, task: Task, model: str, home: Path) -> Candidate:
    """``start``: a bundle's folder, whose weights are copied into ``home``: the study no longer needs it then.

    Raises UsageError where it is of another program or model, StoreError where it is no bundle.
    """
    own = task.base_candidate()
    if start is None:
        return own
    bundle = open_bundle(start)
    candidate, said = bundle.candidate, bundle.manifest.model
    if unlike := sorted(set(candidate.prompts) ^ set(own.prompts)):
        raise UsageError(
            f"--from {start}: predictors {', '.join(unlike)} are not in both bundle and task {task.name!r}"
        )
    if bundle.checkpoint is not None:
        raise UsageError(f"--from {start}: a merged one; accepted: one without --merge, or --model {bundle.checkpoint}")
    if candidate.weights.kind == "base":
        return candidate
    if said.digest and model_digest(model) != said.digest:
        raise UsageError(f"--from {start}: its weights are of model {said.name}, not of --model {model}")
    kept = home.resolve() / "starts" / candidate.weights.digest
    if not kept.is_dir():
        try:
            with written(kept) as temporary:
                copy_weights(candidate.weights, temporary)
        except UsageError as error:  # another process was first
            if not kept.is_dir():
                raise StoreError(str(error)) from error
    return replace(candidate, weights=replace(candidate.weights, path=str(kept)))
