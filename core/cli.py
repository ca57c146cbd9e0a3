"""The command line: thin wiring from flags to the library. Exit status 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colever import console
from colever.errors import ColeverError, UsageError
from colever.ray_workers import placed
from colever.rubric_commands import DataOption, EngineOption, RubricOption, rescore_command, rubric_app
from colever.seed_commands import seed_app
from colever.ship.commands import export_command, serve_command
from colever.shown import (
    show_comparison,
    show_evaluation,
    show_prompts,
    show_report,
    show_rollouts,
    with_examples,
    write_page,
    write_report,
)
from colever.stored import task_of
from colever.stores import name_stores, stores_of
from colever.studies import interruptible, open_study, show_estimates, show_rerun, show_studies, show_study
from colever.tune_command import rubric_tune
from colever.worker_command import DatabaseOption, MlflowOption, ObjectsOption, worker_command

if TYPE_CHECKING:
    from colever.config import SweepConfig

app = typer.Typer(
    name="colever",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Improve a DSPy program with two levers, its prompts and its weights, and measure what each one earned.",
    epilog="Start with: colever sweep arithmetic",
)
app.add_typer(seed_app, name="seed")
rubric_app.command("tune", epilog="Example: colever rubric tune arithmetic --trials 8 --out tuned.yaml")(rubric_tune)
app.add_typer(rubric_app, name="rubric")
app.command("rescore", epilog="Example: colever rescore arithmetic 2.1 --rubric strict.toml")(rescore_command)
app.command("export", epilog="Example: colever export arithmetic shipped")(export_command)
app.command("worker", epilog="Example: colever worker --study arithmetic-seed-s0 --wait 600")(worker_command)
app.command("serve", epilog="Example: colever serve shipped --port 8000")(serve_command)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="A bundled task, my_task.py:task, or verifiers:ID.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="seed, a checkpoint folder, a hub name, or api:openai/gpt-5-mini (docs/remote.md)."),
]
PromptModelOption = Annotated[
    str | None,
    typer.Option("--prompt-model", help="Who writes prompts: policy, openai/gpt-5-mini, or NAME@http://HOST:PORT/v1."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
HackingOption = Annotated[
    str | None,
    typer.Option("--on-hacking", help="Score up, truth not: warn, stop (refuse the round, end the trial), or off."),
]
ProcessesOption = Annotated[
    int | None, typer.Option("--processes", help="So many train each pull together (docs/several-gpus.md).")
]
StudyOption = Annotated[str | None, typer.Option("--study", help="Name; default <task>-<model>-s<seed>.")]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="KEY=VALUE", help="A cap, such as rollouts=20000."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any of docs/settings.md: weights.learning_rate=1e-4."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML; flags win.")]
HomeOption = Annotated[Path, typer.Option("--home", envvar="COLEVER_HOME", help="Folder of studies and databases.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
HOME = Path("mlruns")


@app.command(epilog="Example: colever tasks")
def tasks(as_json: JsonOption = False) -> None:
    """List the bundled tasks, and those whose rows are published elsewhere."""
    from colever.tasks.load import BUNDLED, LONG, PUBLISHED

    if as_json:
        console.show_json(BUNDLED | LONG | PUBLISHED)
        return
    for name, text in (BUNDLED | LONG).items():
        console.show(f"[bold]{name:12}[/] {text}")
    for name, text in PUBLISHED.items():
        console.show(f"[bold]{name:12}[/] {text} [dim](rows: --data, or the hub)[/]")


@app.command("eval", epilog="Example: colever eval arithmetic --split dev --limit 64")
def evaluate_command(
    task: TaskArgument,
    split: Annotated[str, typer.Option("--split", help="train, dev, test or a watched split.")] = "dev",
    data: DataOption = None,
    rubric: RubricOption = None,
    model: ModelOption = None,
    kind: EngineOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N examples.")] = None,
    candidate: Annotated[
        Path | None, typer.Option("--candidate", help="A candidate's JSON, or a bundle; default: the base.")
    ] = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the program on one split: the base, or a candidate."""
    resolved = _config(config, settings, None, kind=kind, task=task, data=data, rubric=rubric, model=model, seed=seed)
    with interruptible("nothing was stored"):
        loaded, engine = open_study(resolved)
        if split not in ("train", "dev", "test", *loaded.watched):
            raise UsageError(f"--split {split!r}: accepted: {', '.join(('train', 'dev', 'test', *loaded.watched))}")
        from colever.optimizers.evaluate import evaluate

        chosen = _read_candidate(candidate) if candidate else loaded.base_candidate()
        total = len(loaded.examples(split)[:limit])
        with closing(engine), console.progress() as drawn:
            result = evaluate(
                chosen, loaded, engine, split, seed=resolved.seed, limit=limit,
                on_done=lambda done: drawn.update(done, total, f"{task} on {split}"),
            )  # fmt: skip
    show_evaluation(result, task, resolved.model, as_json)


@app.command(epilog="Example: colever optimize arithmetic --schedule p,w")
def optimize(
    task: TaskArgument,
    schedule: Annotated[str, typer.Option("--schedule", help="Levers in order, p and w, or adaptive.")] = "p,w",
    data: DataOption = None,
    rubric: RubricOption = None,
    model: ModelOption = None,
    kind: EngineOption = None,
    study: StudyOption = None,
    seed: SeedOption = None,
    budget: BudgetOption = None,
    prompt_model: PromptModelOption = None,
    on_hacking: HackingOption = None,
    processes: ProcessesOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Pull the levers of one schedule and keep what is better on dev: a study of one trial."""
    from colever.config import check_schedule

    check_schedule(schedule)
    resolved = _config(
        config, settings, budget, prompt_model, on_hacking, kind, processes, task=task, data=data, rubric=rubric,
        model=model, study=study, seed=seed, trials=1, schedules=[schedule],
    )  # fmt: skip
    if resolved.study is None:
        name = f"{resolved.study_name}-{schedule.replace(',', '').replace(' ', '').replace('->', '')}"
        resolved = resolved.model_copy(update={"study": name})
    show_study(resolved, home, as_json)


@app.command(epilog="Example: colever sweep all --seeds 3")
def sweep(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A bundled task, all of them (all), or my_task.py:task.")],
    trials: Annotated[int | None, typer.Option("--trials", help="The arms first, then searched ones.")] = None,
    data: DataOption = None,
    rubric: RubricOption = None,
    model: ModelOption = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DIR", help="Start from an exported candidate.")
    ] = None,
    kind: EngineOption = None,
    study: StudyOption = None,
    seed: SeedOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds, from --seed on: a study each.")] = 1,
    budget: BudgetOption = None,
    prompt_model: PromptModelOption = None,
    on_hacking: HackingOption = None,
    settings: SetOption = None,
    config: ConfigOption = None,
    processes: ProcessesOption = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="So many processes share a study out.")] = 1,
    on: Annotated[
        str | None, typer.Option("--on", help="Place the workers on a Ray cluster: ray, or ray://HOST:10001.")
    ] = None,
    needs: Annotated[
        list[str] | None, typer.Option("--needs", metavar="KEY=VALUE", help="Of each worker on Ray: gpus=1, cpus=4.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate what it would cost, from a probe.")] = False,
    database: DatabaseOption = None,
    mlflow: MlflowOption = None,
    objects: ObjectsOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare prompt only, weights only and both, search on, and report what each lever earned.

    The same command continues after any interrupt; finished rounds are not run again. Given in a second terminal
    meanwhile, it works along. Several tasks or seeds are a study each, and end in the table of `colever compare`.
    """
    from colever.config import UNTRAINABLE, several
    from colever.tasks.load import BUNDLED

    def resolved(name: str) -> SweepConfig:
        flags: dict[str, Any] = {"task": name, "data": data, "rubric": rubric, "model": model}
        flags |= {"start": start, "study": study, "seed": seed, "trials": trials}
        return _config(config, settings, budget, prompt_model, on_hacking, kind, processes, **flags)

    name_stores(home, database, mlflow, objects)
    configs = several([resolved(name) for name in (BUNDLED if task == "all" else [task])], seeds)
    if not configs[0].trainable:
        console.say(UNTRAINABLE)
    if dry_run:
        show_estimates(configs, home, as_json)
    elif len(configs) == 1:
        show_study(configs[0], home, as_json, placed(workers, on, needs))
    else:
        show_studies(configs, home, as_json, placed(workers, on, needs))


@app.command(epilog="Example: colever compare arithmetic lookup --out comparison/")
def compare(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Finished studies, or tasks for their latest; default: all."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write it here as JSON and as a picture.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Set studies side by side: each arm on test, which lever won, the cost to the target.

    Studies that differ in nothing but their training seed make one row, with intervals over seeds and examples.
    """
    show_comparison(home, studies or [], out, as_json)


@app.command(epilog="Example: colever report arithmetic --html arithmetic.html")
def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, or a task for its latest study.")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write figures, JSON and page here.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write one page to mail.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Show a study's report; of an unfinished study, dev only."""
    from colever.optimizers.attribution import report_of
    from colever.optimizers.side_by_side import with_rollouts
    from colever.optimizers.study import find_study

    folder = find_study(home, name)
    built = report_of(folder)
    if out is not None or html is not None:
        built = with_rollouts(built, folder)
        try:
            built = with_examples(built, task_of(folder, unchanged=True)) if built.flips else built
        except UsageError as error:
            console.say(f"flipped examples of which no rollout was kept are named, not shown: {error}")
    if out is not None:
        write_report(built, out)
    if html is not None:
        write_page(built, html)
    show_report(built, as_json)


@app.command(epilog="Example: colever show arithmetic 2.1 --against winner")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, or a task for its latest study.")],
    which: Annotated[
        str, typer.Argument(metavar="[ROUND]", help="base, winner, or TRIAL.ROUND: 2.1 is trial 2's first.")
    ] = "winner",
    against: Annotated[
        str, typer.Option("--against", metavar="ROUND", help="Compare with this one; default: its parent, or base.")
    ] = "",
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a candidate's prompts, what they cost every call, and what changed in them."""
    show_prompts(home, name, which, against, as_json)


@app.command(epilog="Example: colever rollouts arithmetic 2.1 --prompts")
def rollouts(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, or a task for its latest study.")],
    which: Annotated[
        str, typer.Argument(metavar="[ROUND]", help="base, winner, or TRIAL.ROUND: 2.1 is trial 2's first.")
    ] = "winner",
    split: Annotated[str, typer.Option("--split", help="dev; of base and winner also test or a watched one.")] = "dev",
    prompts: Annotated[bool, typer.Option("--prompts", help="Also print what the model read.")] = False,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Print the rollouts kept of a round: the same examples of every round, so that two can be compared."""
    show_rollouts(home, name, which, split, prompts, as_json)


@app.command(epilog="Example: colever rerun arithmetic")
def rerun(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A finished study, or a task for its latest.")],
    into: Annotated[Path | None, typer.Option("--into", help="Home of the new run; default: reruns in --home.")] = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a study again from its manifest, and compare; exit status 1 if it came out otherwise."""
    show_rerun(name, home, into, as_json)


@app.command(epilog="Example: colever ui arithmetic --port 5001")
def ui(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A study or task to open at.")] = None,
    port: Annotated[int, typer.Option("--port", help="On 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Open the MLflow UI at a view that compares the levers; Ctrl-C ends it."""
    from colever.tracking.ui import serve

    def announce(url: str) -> None:
        if as_json:
            console.show_json({"url": url})
        else:
            console.say(f"MLflow UI: {url}" + ("" if stores_of(home).mlflow else "\nCtrl-C ends it."))

    serve(home, port=port, open_browser=browser, study_or_task=name, announce=announce)


@app.command(epilog="Example: colever doctor --json")
def doctor(home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """Say what this machine and installation can do; exit status 1 if something needed is missing."""
    from colever.doctor import examine

    findings = examine(home)
    if as_json:
        console.show_json([dataclasses.asdict(f) for f in findings])
    else:
        marks = {True: "[green]ok  [/]", False: "[red]bad [/]", None: "[dim]–   [/]"}
        for f in findings:
            console.show(f"{marks[f.ok]} {f.what:12} {f.detail}")
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; errors that Colever raises on purpose become one line and an exit status."""
    console.silence()
    try:
        app()
    except UsageError as error:
        console.fail(str(error))
        sys.exit(2)
    except ColeverError as error:
        console.fail(str(error))
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that is a file: where no closer place has said more
        console.fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        sys.exit(1)


# --- wiring ----------------------------------------------------------------------------------------


def _config(
    file: Path | None,
    settings: list[str] | None,
    budget: list[str] | None,
    prompt_model: str | None = None,
    on_hacking: str | None = None,
    kind: str | None = None,
    processes: int | None = None,
    **flags: Any,
) -> SweepConfig:
    from colever.loading import load_config, parse_pairs

    caps = {f"budget.{key}": value for key, value in parse_pairs(budget or [], "--budget").items()}
    asked: dict[str, Any] = {} if prompt_model is None else {"proposer.model": prompt_model}
    asked |= {} if on_hacking is None else {"guard.on_hacking": on_hacking}
    asked |= {} if kind is None else {"engine.kind": kind}
    asked |= {} if processes is None else {"training.processes": processes}
    return load_config(file, flags=flags, overrides={**parse_pairs(settings or [], "--set"), **asked, **caps})


def _read_candidate(path: Path) -> Any:
    from colever.types import Candidate, read_json

    try:
        if path.is_dir():
            from colever.ship.opened import open_bundle

            return open_bundle(path).candidate
        return Candidate.from_json(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--candidate {path}: not a candidate's JSON: {error}") from error
