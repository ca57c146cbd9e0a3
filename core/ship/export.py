"""A candidate of a study as a bundle. Knows studies, tasks and where their files lie; runs nothing unless it merges."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.errors import UsageError
from colever.ship.layout import (
    FORMAT,
    MODEL,
    WEIGHTS,
    Manifest,
    ModelReference,
    RubricReference,
    WeightsReference,
)
from colever.ship.serve_file import SERVE
from colever.ship.weights import copy_weights
from colever.ship.written import check_free, write_manifest, write_program, write_rubric, written
from colever.types import Candidate, Weights

if TYPE_CHECKING:
    from colever.config import SweepConfig
    from colever.optimizers.study import StudyFolder, StudyState
    from colever.tasks.task import Task

_WHICH = re.compile(r"(.+):(base|winner|\d+(?:\.\d+)?)")


def export(home: Path, name: str, to: Path, merge: bool = False) -> Manifest:
    """Write the bundle of ``STUDY`` (its winner), ``STUDY:2`` (what trial 2 kept) or ``STUDY:2.1`` (a round) to ``to``.

    Raises UsageError for a name or a folder that cannot be used, TaskError where the study's task is another by now,
    StoreError where something is gone or cannot be written.
    """
    from colever.loading import load_config
    from colever.optimizers.study import find_study
    from colever.stored import task_of

    check_free(to)
    matched = _WHICH.fullmatch(name)
    study, which = (matched[1], matched[2]) if matched else (name, "winner")
    folder = find_study(home, study)
    state = folder.state()
    if state is None:
        raise UsageError(f"study {study!r} has nothing to export yet; run its sweep")
    candidate, schedule = chosen(folder, state, which)
    config, task = load_config(folder.file("config.yaml")), task_of(folder, unchanged=True)
    with written(to) as temporary:
        weights = _weights(candidate, config, merge, temporary)
        shipped = dataclasses.replace(candidate, weights=weights)
        manifest = _manifest(folder, config, task, which, schedule, shipped, temporary)
        _report(folder, temporary)
        (temporary / "serve.py").write_text(SERVE, encoding="utf-8")
        write_manifest(temporary, manifest)
    return manifest


def chosen(folder: StudyFolder, state: StudyState, which: str) -> tuple[Candidate, str]:
    """The candidate of that name and its schedule. Raises UsageError that lists what there is."""
    from colever.optimizers.attribution import choose_winner
    from colever.optimizers.named_rounds import find_round

    trials = folder.trials(state)
    if which == "winner":
        best = choose_winner(state, trials)
        if best is None:
            raise UsageError(f"study {folder.name!r} has no finished trial yet; accepted: {folder.name}:base")
        return best.candidate, best.schedule
    if which.isdecimal():
        found = [t for t in trials if t.number == int(which)]
        if not found:
            raise UsageError(f"trial {which}: accepted: {', '.join(str(t.number) for t in trials) or 'none yet'}")
        return found[0].candidate, found[0].schedule
    return find_round(folder, state, which).candidate, ""


def _weights(candidate: Candidate, config: SweepConfig, merge: bool, folder: Path) -> Weights:
    """Their files in ``folder``, and the reference with which the bundle names them."""
    if merge:
        from colever.engines.lm import open_engine
        from colever.ship.merged import merge as merged

        made = merged(candidate, open_engine(config.model, **config.engine.in_process()), folder / MODEL)
        return dataclasses.replace(made, path=MODEL)
    if candidate.weights.kind == "base":
        return candidate.weights
    copy_weights(candidate.weights, folder / WEIGHTS)
    return dataclasses.replace(candidate.weights, path=WEIGHTS)


def _manifest(
    study: StudyFolder, config: SweepConfig, task: Task, which: str, schedule: str, candidate: Candidate, folder: Path
) -> Manifest:
    from colever.optimizers.evaluate import versions
    from colever.ship.models import located, model_digest
    from colever.ship.tasks import refer
    from colever.tasks.rubric_data import rubric_data

    write_program(candidate, folder)
    reference = refer(config.task, config.data, task, folder)
    rubric = rubric_data(task.rubric, config.rubric)
    write_rubric(rubric.text, rubric.files, folder)
    return Manifest(
        format=FORMAT,
        study=study.name,
        which=which,
        schedule=schedule,
        candidate=candidate.digest,
        task=reference,
        model=ModelReference(name=located(config.model), digest=model_digest(config.model), engine=config.engine),
        weights=WeightsReference(**dataclasses.asdict(candidate.weights)),
        rubric=RubricReference(digest=rubric.digest, code=dict(rubric.code)),
        measured=_measured(study, candidate),
        versions=versions(),
        files={},
    )


def _measured(study: StudyFolder, candidate: Candidate) -> dict[str, float]:
    """What the study has read of the candidate on dev and test; nothing where the weights were merged."""
    state = study.state()
    look = study.evaluations(state) if state is not None else lambda candidate, split: None
    found: dict[str, float] = {}
    for split in ("dev", "test"):
        if (made := look(candidate, split)) is not None:
            found[f"{split}_score"] = made.score
            found |= {f"{split}_gold": made.gold} if made.gold is not None else {}
    return found


def _report(study: StudyFolder, folder: Path) -> None:
    """The study's report as it stands, as JSON and as a page."""
    from colever.optimizers.attribution import report_of
    from colever.optimizers.side_by_side import with_rollouts
    from colever.tracking.page import to_html
    from colever.tracking.report_json import to_json

    built: Any = with_rollouts(report_of(study), study)
    (folder / "report.json").write_text(json.dumps(to_json(built), indent=2), encoding="utf-8")
    (folder / "report.html").write_bytes(to_html(built).encode("utf-8", errors="replace"))
