"""Studies from the command line: one, several with their comparison, or only what they would cost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from colever import console
from colever.crew import crew_of, refuse
from colever.errors import LeverError, UsageError
from colever.shown import show_comparison, show_report, with_examples, write_report
from colever.stored import named_in, where_made
from colever.stores import in_home_alone

if TYPE_CHECKING:
    from colever.config import SweepConfig
    from colever.ray_workers import RayWorkers
    from colever.reported import StudyReport

RESUMES = "finished rounds are stored; the same command continues"


def show_study(config: SweepConfig, home: Path, as_json: bool, workers: int | RayWorkers = 1) -> None:
    """Run or continue one study and show its report. Raises LeverError where trials failed."""
    built = run_study(config, home, workers)
    show_report(built, as_json)
    flags = {"--data": config.data, "--rubric": config.rubric}
    scored = " ".join([config.task, *(f"{flag} {quote(file)}" for flag, file in flags.items() if file)])
    console.say(
        f"\nIn {home / 'studies' / config.study_name}: report.html, report.json, figures, config.yaml, candidate.json "
        f"(for: colever eval {scored} --candidate). Compare the runs: colever ui {config.study_name}"
    )
    _raise_failures(built.failures, config.trials)


def show_studies(configs: Sequence[SweepConfig], home: Path, as_json: bool, workers: int | RayWorkers = 1) -> None:
    """Run or continue studies one by one, then set them side by side. Raises LeverError where trials failed."""
    from colever.tracking.report import verdict

    failures: list[str] = []
    for place, config in enumerate(configs, 1):
        console.say(f"study {place} of {len(configs)}: {config.study_name}")
        built = run_study(config, home, workers)
        failures += [f"{config.study_name}: {failure}" for failure in built.failures]
        console.say(verdict(built))
    show_comparison(home, [config.study_name for config in configs], None, as_json)
    _raise_failures(failures, sum(config.trials for config in configs))


def show_estimates(configs: Sequence[SweepConfig], home: Path, as_json: bool) -> None:
    """What each study would cost, on stdout and as ``estimate.json`` in its folder; runs a probe of each task."""
    from colever.optimizers.estimate import estimate
    from colever.optimizers.study import StudyFolder
    from colever.optimizers.sweep import levers_for
    from colever.optimizers.weight_lever import WeightLever
    from colever.tracking.estimate import render, to_json

    made: dict[str, Any] = {}
    with interruptible("nothing was stored"):
        make_home(home)
        for config in configs:
            task, engine = open_study(config, home)
            with closing(engine), console.progress() as drawn:
                found = estimate(config, task, engine, levers_for(config, engine, WeightLever), drawn)
            StudyFolder(home, config.study_name).write_estimate(found.search)
            made[config.study_name] = found.priced(config.dollars_per_hour)
    if as_json:
        console.show_json({name: to_json(found) for name, found in made.items()})
    else:
        console.show(render(made))


def show_rerun(name: str, home: Path, into: Path | None, as_json: bool) -> None:
    """Make a finished study again in an empty home from its manifest, and say whether it came out the same.

    Raises UsageError for a study that is not finished, LeverError where the reports differ (times left aside).
    """
    from colever.config import SweepConfig
    from colever.optimizers.attribution import report_of
    from colever.optimizers.evaluate import Grounds, versions
    from colever.optimizers.manifest import changes, unlike
    from colever.optimizers.study import find_study
    from colever.tracking.report_json import to_json

    folder = find_study(home, name)
    before = report_of(folder)
    if not before.finished:
        raise UsageError(f"study {folder.name!r} is not finished: run its sweep to the end first")
    made = folder.manifest()
    config = SweepConfig(**made["config"]).model_copy(update={"study": folder.name, "trials": len(before.arms)})
    target, place = into or home / "reruns", made.get("folder", "")
    absolute = target.resolve()
    with in_home_alone(), where_made(config, place):
        with named_in(folder.path / "manifest.json", config, place):
            task, engine = open_study(config)
        if not config.trainable:
            console.say(f"{config.model}: an API model does not promise the same answers, and is paid for once more")
        moved = changes(made, Grounds(task.digest(), engine.digest, versions()))
        engine.close()  # the run opens its own
        for change in moved:
            console.say(f"since then: {change}")
        after = run_study(config, absolute)
    found = unlike(to_json(before), to_json(after))
    if as_json:
        console.show_json({"study": folder.name, "same": not found, "unlike": found, "changes": moved})
    else:
        console.show(f"{folder.name}: made again in {target}, " + ("with the same result" if not found else "unlike"))
        for line in found[:20]:
            console.show(f"  {escape(line)}")
    if found:
        raise LeverError(f"{folder.name} came out otherwise in {len(found)} places")


def run_study(config: SweepConfig, home: Path, workers: int | RayWorkers = 1) -> StudyReport:
    """Run or continue it with so many processes, this one included, or on Ray; its report is in its folder then."""
    with interruptible(RESUMES), ended_by_sigterm():
        if not isinstance(workers, int):
            from colever.ray_workers import run_on_ray

            make_home(home)
            return run_on_ray(config, home.resolve(), workers)
        refuse(config, workers)
        task, engine = open_study(config, home)
        from colever.optimizers.side_by_side import with_rollouts
        from colever.optimizers.space import left_out
        from colever.optimizers.study import StudyFolder
        from colever.optimizers.sweep import sweep
        from colever.optimizers.workers import Workers
        from colever.tracking.mlflow_tracker import MlflowTracker
        from colever.worker import further_workers

        make_home(home)
        folder = StudyFolder(home, config.study_name)
        if line := left_out(config):
            console.say(line)
        if others := Workers.of(home, config.study_name).others():
            console.say(f"{others} other process(es) run study {config.study_name}: this one works along")
        with (
            closing(engine),
            further_workers(config, home, workers - 1),
            crew_of(config, home, task.digest()) as crew,
            console.progress() as drawn,
        ):
            tracker = MlflowTracker(home)
            built = sweep(config, task, engine, home, weight_lever=crew.lever, tracker=tracker, progress=drawn)
        write_report(with_examples(with_rollouts(built, folder), task), folder.path)
        folder.share("report.*", "candidate.json", "figures/*")
    return built


def open_study(config: SweepConfig, home: Path | None = None) -> tuple[Any, Any]:
    """(task, engine); the task first: a wrong name fails before a model is loaded; proposer and judges must be there.

    Until a sweep says otherwise this process asks judges as the configuration has it. A vLLM server's log goes into the
    study's folder below ``home``.
    """
    from colever.engines.bench import seat
    from colever.tasks.judges import open_judges, with_judge
    from colever.tasks.load import load_task

    task = with_judge(load_task(config.task, config.data, config.rubric), config.judge.model)
    open_judges(task, seat(config.judge))
    from colever.engines.lm import open_policy
    from colever.optimizers.proposer import open_proposer

    log = None if home is None else home / "studies" / config.study_name / "vllm.log"
    engine = open_policy(config.model, config.remote, config.engine, log=log, told=console.say)
    open_proposer(config.proposer, engine)
    return task, engine


@contextmanager
def interruptible(what_now: str) -> Iterator[None]:
    """Ctrl-C ends a command with one line."""
    try:
        yield
    except KeyboardInterrupt:
        console.fail(f"interrupted: {what_now}")
        raise typer.Exit(1) from None


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which schedulers send, does what Ctrl-C does, with exit status 143; a second one changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def end(number: int, _frame: object) -> None:
        if not told:
            told.append(number)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if not told:
            raise
        console.fail(f"ended by SIGTERM: {RESUMES}")
        raise typer.Exit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_failures(failures: Sequence[str], trials: int) -> None:
    if failures:
        raise LeverError(
            f"{len(failures)} of {trials} trials failed; the same command tries them once more. {' '.join(failures)}"
        )


def make_home(home: Path) -> None:
    """Raises UsageError for a folder that cannot be made."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--home {home}: cannot be made: {error.strerror}") from error
