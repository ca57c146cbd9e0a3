"""Evaluations and reports as a command shows them: for people, as JSON, as files. Computes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from colever import console
from colever.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from colever.reported import StudyReport
    from colever.tasks.task import Task
    from colever.types import Evaluation

EXAMPLES_SHOWN = 4  # flipped in each direction, with their fields


def write_report(built: StudyReport, folder: Path) -> None:
    """``report.json``, ``report.html``, ``figures/`` and the winner as ``candidate.json`` in ``folder``.

    Raises StoreError.
    """
    from colever.tracking.figures import save_all
    from colever.tracking.report_json import to_json

    files = {"report.json": to_json(built)}
    if built.path:
        files["candidate.json"] = built.path[-1].kept.to_json()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            _replace(folder / name, json.dumps(value, indent=2, ensure_ascii=False).encode())
        save_all(built, folder / "figures")
    except OSError as error:
        raise StoreError(f"the report cannot be written to {folder}: {error}") from error
    write_page(built, folder / "report.html")


def write_page(built: StudyReport, file: Path) -> None:
    """The report as one HTML page: all of it or nothing. Makes the folder. Raises StoreError."""
    from colever.tracking.page import to_html

    page = to_html(built).encode("utf-8", errors="replace")  # half of a surrogate pair has no encoding
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, page)
    except OSError as error:
        raise StoreError(f"the page cannot be written to {file}: {error.strerror or error}") from error


def _replace(file: Path, content: bytes) -> None:
    """All of it or nothing. Raises OSError."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def with_examples(built: StudyReport, task: Task) -> StudyReport:
    """The report with what a few of its flipped examples hold: inputs first, then the other fields.

    Those of which there are rollouts come first.
    """
    if built.flips is None:
        return built
    wanted: set[str] = set()
    for names in (built.flips.gained, built.flips.lost):
        wanted |= set(sorted(names, key=lambda name: name not in built.rollouts)[:EXAMPLES_SHOWN])
    rows = {name: example for name, example in task.examples("test") if name in wanted}
    fields = {name: {**example.inputs().toDict(), **example.labels().toDict()} for name, example in rows.items()}
    return dataclasses.replace(built, flips=dataclasses.replace(built.flips, fields={**built.flips.fields, **fields}))


def show_report(built: StudyReport, as_json: bool) -> None:
    """The whole report on stdout."""
    from colever.tracking.report_json import to_json
    from colever.tracking.terminal import render

    if as_json:
        console.show_json(to_json(built))
    else:
        console.show(render(built))


def show_rollouts(home: Path, name: str, which: str, split: str, prompts: bool, as_json: bool) -> None:
    """The rollouts kept of a round, or of base or winner, on stdout. Raises UsageError, StoreError."""
    from colever.optimizers.side_by_side import rollouts_of
    from colever.optimizers.study import find_study
    from colever.tracking.rollouts import render

    found = rollouts_of(find_study(home, name), which, split)
    if as_json:
        console.show_json([rollout.to_json() for rollout in found])
    else:
        console.show(render(found, prompts))


def show_prompts(home: Path, name: str, which: str, against: str, as_json: bool) -> None:
    """A candidate's prompts and what changed in them, on stdout. Raises UsageError, StoreError."""
    from colever.optimizers.named_rounds import prompts_of
    from colever.optimizers.study import find_study
    from colever.tracking.prompts import render, to_json

    shown, other = prompts_of(find_study(home, name), which, against)
    if as_json:
        console.show_json(to_json(shown, other))
    else:
        console.show(render(shown, other), whole_lines=True)


def show_comparison(home: Path, studies: Sequence[str], out: Path | None, as_json: bool) -> None:
    """The table of studies side by side on stdout; with ``out`` as files too. Raises UsageError, StoreError."""
    from colever.optimizers.comparison import compare
    from colever.tracking import comparison

    rows = compare(home, studies)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(comparison.to_json(rows), indent=2, ensure_ascii=False)
            (out / "comparison.json").write_text(text, encoding="utf-8")
            comparison.draw(rows).savefig(out / "comparison.png", dpi=140, facecolor="white")
        except OSError as error:
            raise StoreError(f"the comparison cannot be written to {out}: {error}") from error
    if as_json:
        console.show_json(comparison.to_json(rows))
    else:
        console.show(comparison.render(rows))


def show_evaluation(result: Evaluation, task: str, model: str, as_json: bool) -> None:
    """Score and gold with 95 % intervals, criteria, lengths and failures on stdout."""
    from colever.optimizers.statistics import mean_estimate

    estimates = {"score": mean_estimate(result.scores), "gold": mean_estimate(result.golds)}
    if as_json:
        data = dataclasses.asdict(result)
        rest = {k: v for k, v in data.items() if k not in ("scores", "golds", "example_ids")}
        values = {name: dataclasses.asdict(e) if e else None for name, e in estimates.items()}
        console.show_json({"task": task, "model": model, "examples": len(result.scores), **rest, **values})
        return
    size, seconds = len(result.scores), result.cost.seconds
    console.show(f"[bold]{escape(task)}[/] · {escape(model)} · {result.split}: {size} examples, {seconds:.1f} s")
    for name, e in estimates.items():
        if e is not None:
            console.show(f"  {name:16} {e.value:6.1%}  {e.low:.1%} to {e.high:.1%}")
    for name, value in result.by_criterion.items():
        agreed = f"  its votes agree by alpha {result.agreement[name]:.2f}" if name in result.agreement else ""
        console.show(f"  {escape(name):16} {value:6.1%}{agreed}")
    for what, by_predictor in (("prompt", result.prompt_tokens), ("completion", result.completion_tokens)):
        lengths = ", ".join(f"{escape(name)} {value:.1f}" for name, value in by_predictor.items())
        console.show(f"  {what} tokens of a call: {lengths or 'none'}")
    console.show(f"  failed answers: {result.policy_failures}")
    if result.cost.judge_calls:
        console.show(f"  judges: {result.cost.judge_calls:,} calls, {result.cost.judge_tokens:,} tokens")
    if result.infrastructure_failures:
        console.show(f"  without a score (the machinery failed): {result.infrastructure_failures}")
