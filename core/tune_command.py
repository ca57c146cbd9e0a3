"""``colever rubric tune``: a rubric's weights, gates and criteria chosen by gold on a part of train."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from colever import console
from colever.rubric_commands import DataOption, EngineOption, JsonOption, RubricOption


def rubric_tune(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A bundled task, or a file as my_task.py:task.")],
    data: DataOption = None,
    rubric: RubricOption = None,
    model: Annotated[str | None, typer.Option("--model", help="seed, a checkpoint folder, or a hub name.")] = None,
    kind: EngineOption = None,
    schedule: Annotated[str, typer.Option("--schedule", help="Levers pulled under each rubric, p and w.")] = "w",
    trials: Annotated[int, typer.Option("--trials", help="Rubrics tried; the first is the own one.")] = 12,
    designs: Annotated[int, typer.Option("--designs", help="Of them, how many --prompt-model designs.")] = 4,
    share: Annotated[float, typer.Option("--share", help="Of train, cut off for gold to choose by.")] = 0.5,
    seeds: Annotated[int, typer.Option("--seeds", help="Fresh seeds for own and tuned on test; 0: none.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the rubric here (YAML).")
    ] = None,
    prompt_model: Annotated[
        str | None, typer.Option("--prompt-model", help="Who designs: openai/gpt-5-mini, NAME@http://HOST:PORT/v1.")
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name; default <task>-<rubric>-<model>-s<seed>.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    budget: Annotated[list[str] | None, typer.Option("--budget", metavar="KEY=VALUE", help="A cap on all.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="docs/settings.md.")] = None,
    home: Annotated[Path, typer.Option("--home", envvar="COLEVER_HOME", help="Folder of studies.")] = Path("mlruns"),
    as_json: JsonOption = False,
) -> None:
    """Pull the levers under one rubric after the other, choose by gold on a part of train, and read test at the end.

    Weights and gates are searched; a criterion of weight 0 may come in. With --prompt-model a language model designs
    some rubrics first. The same command continues after an interrupt.
    """
    from colever.config import check_schedule, parse_schedule
    from colever.errors import UsageError
    from colever.loading import load_config, parse_pairs
    from colever.optimizers.proposer import open_proposer, probe
    from colever.optimizers.tuning import tune
    from colever.optimizers.tuning_plan import TuningPlan
    from colever.studies import RESUMES, interruptible, make_home, open_study
    from colever.tasks.load import load_task
    from colever.tasks.rubric_file import load_rubric
    from colever.tasks.rubric_tables import ENDINGS, tables_in, tables_of, write_tables
    from colever.tracking.tuning import figure, render, track

    plan = TuningPlan(check_schedule(schedule), trials, designs, share, seeds)
    parse_schedule(schedule)  # refuses adaptive, whose order depends on the rubric's own scores
    if out is not None and (out.suffix not in ENDINGS or not out.parent.is_dir() or out.is_dir()):
        raise UsageError(f"--out {out}: accepted: a file in a folder that exists, that ends in {' or '.join(ENDINGS)}")
    caps = {f"budget.{key}": value for key, value in parse_pairs(budget or [], "--budget").items()}
    asked = {} if prompt_model is None else {"proposer.model": prompt_model}
    asked |= {} if kind is None else {"engine.kind": kind}
    config = load_config(
        None,
        flags={"task": task, "data": data, "rubric": rubric, "model": model, "study": study, "seed": seed},
        overrides={**parse_pairs(settings or [], "--set"), **asked, **caps},
    )
    with interruptible(RESUMES):
        given, name = config.rubric and Path(config.rubric), config.study_name
        config = config.model_copy(update={"rubric": None, "study": name})  # `kind: task` is of the task itself
        if given:
            load_rubric(given, load_task(config.task, config.data))
        make_home(home)
        loaded, engine = open_study(config, home)
        tables = tables_in(given) if given else tables_of(loaded.rubric)
        with closing(engine), console.progress() as drawn:
            proposer = open_proposer(config.proposer, engine) if designs else None
            if proposer is not None:
                probe(proposer)
            found = tune(config, loaded, tables, engine, home, plan, proposer=proposer, progress=drawn)
        if out is not None:
            write_tables(found.tuned.tables, out, "\n".join(found.tuned.changes))
        folder = home / "tunings" / found.name
        figure(found).savefig(folder / "tuning.png", dpi=140, facecolor="white")
        track(found, home, folder)
    if as_json:
        console.show_json(found.to_json())
    else:
        console.show(render(found))
        console.say(f"\nIn {folder}: tuned.yaml (for: --rubric), tuning.json, tuning.png")
