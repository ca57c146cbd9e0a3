"""``colever worker``: one of any number of processes, on any machines, that work on a study that a sweep has begun."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colever import console
from colever.errors import LeverError, UsageError
from colever.stored import where_made
from colever.stores import name_stores
from colever.studies import ended_by_sigterm, interruptible, run_study

if TYPE_CHECKING:
    from colever.config import SweepConfig

LOOK = 2.0  # seconds between looks for a study that is not there yet

DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="postgresql://USER@HOST/NAME for trials and locks, no password."),
]
MlflowOption = Annotated[str | None, typer.Option("--mlflow", metavar="URL", help="A shared MLflow server.")]
ObjectsOption = Annotated[
    str | None, typer.Option("--objects", metavar="URL", help="s3://BUCKET/PREFIX, or a folder that all machines see.")
]


def worker_command(
    study: Annotated[str, typer.Option("--study", help="Its name, as colever sweep said it.")],
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a study not begun yet.")] = 600,
    database: DatabaseOption = None,
    mlflow: MlflowOption = None,
    objects: ObjectsOption = None,
    home: Annotated[
        Path, typer.Option("--home", envvar="COLEVER_HOME", help="Folder of studies and databases.")
    ] = Path("mlruns"),
) -> None:
    """Work along on a study that `colever sweep` has begun, on this machine or another, until it is finished.

    All workers are alike; any may be killed, and others take up what it did. SIGTERM gives back at once what it holds
    and ends with status 143. The study's settings are those it was begun with.
    """
    home = home.resolve()
    name_stores(home, database, mlflow, objects)
    with ended_by_sigterm():
        with interruptible("nothing was begun"), ended_by_sigterm():
            found = _awaited(home, study, wait)
        if found is None:
            console.say(f"study {study} is finished: colever report {study}")
            return
        config, place = found
        with where_made(config, place):
            built = run_study(config, home)
    from colever.tracking.report import verdict

    console.say(verdict(built))
    if built.failures:
        raise LeverError(f"{len(built.failures)} of {config.trials} trials failed. {' '.join(built.failures)}")


def _awaited(home: Path, study: str, wait: float) -> tuple[SweepConfig, str] | None:
    """The study's settings and the folder that it was begun in; None of one that is finished.

    Raises UsageError where it is not there after ``wait`` seconds.
    """
    from colever.loading import load_config
    from colever.optimizers.study import StudyFolder

    folder, deadline, told = StudyFolder(home, study), time.monotonic() + wait, False
    while (state := folder.state()) is None:
        if time.monotonic() >= deadline:
            raise UsageError(
                f"--study {study!r}: there is none in {home} after {wait:.0f} s; begin it with: colever sweep TASK "
                f"--study {study}, with the same --home and stores"
            )
        if not told:
            console.say(f"study {study} is not there yet: waiting up to {wait:.0f} s for it")
            told = True
        time.sleep(LOOK)
    if state.finished:
        return None
    return load_config(folder.file("config.yaml")).model_copy(update={"study": study}), state.place
