"""A tuned rubric in words, as a picture, and as MLflow runs: one of the tuning, below it one of each rubric.

Reads a ``Tuning`` only. Runs are found by their tags, so that telling it again writes nothing twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from colever.tracking import store
from colever.tracking.figures import BLUE, GREEN, GREY, canvas
from colever.tracking.report import cost_texts, effect_text, interval, share, spelled
from colever.tracking.table import Row, Table
from colever.tracking.terminal import titled
from colever.tracking.view import quoted
from colever.tuned import TriedRubric, Tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW = {"own": "as it was", "design": "designed", "search": "searched"}
NAMES = {"base": "base", "own": "own rubric", "tuned": "tuned rubric"}


def verdict(found: Tuning) -> str:
    """What came of it, in a sentence."""
    others = len(found.tried) - 1
    if found.best == 0:
        return f"{found.task}: none of {others} other rubrics did better by gold than its own, which stays."
    if found.bought is None:
        return f"{found.task}: rubric {found.best} did best by gold on train's tuning split; test was not read."
    bought = f"{100 * found.bought.value:+.1f} points"
    if not found.bought.resolved:
        return f"{found.task}: what the tuned rubric buys on test is unresolved ({bought})."
    better = "buys" if found.bought.value > 0 else "costs"
    return f"{found.task}: the tuned rubric {better} {bought} of gold on test by {spelled(found.schedule)}."


def tables(found: Tuning) -> list[Table]:
    """The rubrics tried, what the best of them changes, and what that bought."""
    made = [_tried(found)]
    if found.best:
        changed = [Row(line.partition(": ")[::2]) for line in found.tuned.changes]
        made.append(Table("What the tuned rubric changes", ("criterion", "change"), changed, left=TEXT, wrap=TEXT))
    if found.test:
        rows = [Row((NAMES[name], interval(found.test[name]))) for name in NAMES if name in found.test]
        rows.append(Row(("tuned less own", effect_text(found.bought)), "best"))
        runs = f"{found.seeds} fresh training seed{'s' if found.seeds > 1 else ''}"
        made.append(Table(f"Gold on test, {runs} each", ("trained under", "gold [95 %]"), rows, left=TEXT))
    return made


TEXT = frozenset(("criterion", "change", "trained under", "rubric", "what came of it"))


def _tried(found: Tuning) -> Table:
    rows = [Row(("", "base, nothing pulled", "", share(found.base)), "faint")]
    rows += [_row(tried, found.best) for tried in found.tried]
    title = f"Rubrics, each pulled along {found.schedule}, on {found.tuning} examples cut from train"
    return Table(title, ("no.", "rubric", "kept", "gold"), rows, left=TEXT, wrap=frozenset(("rubric",)))


def _row(tried: TriedRubric, best: int) -> Row:
    said = "; ".join([*tried.changes, *([tried.error] if tried.error else [])]) or "the same"
    what = f"{HOW[tried.how]}: {said}" if tried.number else HOW["own"]
    style = "best" if tried.number == best else "faint" if tried.gold is None else ""
    return Row((str(tried.number), what, "" if tried.gold is None else str(tried.kept), share(tried.gold)), style)  # type: ignore[arg-type]


def footnotes(found: Tuning) -> Iterator[str]:
    """What the numbers are over."""
    yield f"Levers saw {found.train} examples of train; gold on the other {found.tuning} chose the rubric."
    if found.gain is not None:
        yield (
            f"On these the best is {effect_text(found.gain)} points ahead of the own rubric, the best of "
            f"{len(found.tried)} luckily too: what it bought is read on test."
        )
    if found.bought is not None and found.bought.over == "examples":
        yield "The interval is over test examples, conditional on one training run of each rubric."
    elif found.bought is not None:
        yield f"Intervals are 95 % over {found.seeds} training seeds, which chose nothing, and test examples."
    yield "Gold of dev was not read; gold of test at the end alone."
    rollouts, flops, duration = cost_texts(found.cost)
    yield f"In all {rollouts} rollouts, {flops} TFLOPs, {duration}."
    yield from found.notes


def render(found: Tuning) -> RenderableType:
    """All of it, for a terminal."""
    parts: list[RenderableType] = [Text(verdict(found), style="bold"), Text()]
    for table in tables(found):
        parts += titled(table)
    return Group(*parts, *(Text(f"· {line}", style="dim") for line in footnotes(found)))


def figure(found: Tuning) -> Figure:
    """Gold of every rubric on the tuning split; of own and tuned on test."""
    drawn, axes = canvas(2 if found.test else 1, verdict(found))
    axis = axes[0]
    colours = {"own": GREY, "design": GREEN, "search": BLUE}
    for how, label in HOW.items():
        of = [t for t in found.tried if t.how == how and t.gold is not None]
        heights = [100 * (t.gold or 0) for t in of]
        axis.plot([t.number for t in of], heights, "o", color=colours[how], label=label, markersize=8)
    axis.axhline(100 * found.base, color=GREY, linestyle=":", label="base")
    axis.set_xlabel("rubric")
    axis.set_ylabel("gold on the tuning split (%)")
    axis.legend(frameon=False, fontsize=9)
    if found.test:
        names = [name for name in NAMES if name in found.test]
        bars = [found.test[name] for name in names]
        errors = [[100 * (b.value - b.low) for b in bars], [100 * (b.high - b.value) for b in bars]]
        axes[1].bar([NAMES[n] for n in names], [100 * b.value for b in bars], color=[GREY, BLUE, GREEN], yerr=errors)
        axes[1].set_ylabel(f"gold on test (%), {found.seeds} seed(s)")
        axes[1].set_ylim(0, 100)
    return drawn


def track(found: Tuning, home: Path, folder: Path) -> None:
    """As MLflow runs, with the folder's files. Raises StoreError where the database cannot be used."""
    client = store.open_client(home)
    with store.guarded(home):
        runs = _Runs(client, found, store.experiment(client, home, found.task))
        parent = runs.of({"kind": "tuning"}, f"rubric tuning {found.name}", "")
        points = {f"test/gold_{name}": e.value for name, e in found.test.items()}
        points |= {"gain/rubric": found.bought.value, "gain/rubric_low": found.bought.low} if found.bought else {}
        runs.log(parent, points, {"schedule": found.schedule, "best": str(found.best)})
        client.set_tag(parent, "mlflow.note.content", "\n\n".join([verdict(found), *footnotes(found)]))
        for file in ("tuned.yaml", "tuning.json", "tuning.png"):
            client.log_artifact(parent, str(folder / file))
        for tried in found.tried:
            run = runs.of({"kind": "rubric", "rubric": str(tried.number)}, f"rubric {tried.number}", parent)
            runs.log(run, {} if tried.gold is None else {"tuning/gold": tried.gold}, {"how": tried.how})
            client.log_dict(run, json.loads(json.dumps(tried.tables)), "criteria.json")
            client.set_terminated(run, "FAILED" if tried.gold is None else "FINISHED")
        client.set_terminated(parent, "FINISHED")


class _Runs:
    """Runs of one tuning, found or made."""

    def __init__(self, client: Any, found: Tuning, experiment: str) -> None:
        self.client, self.experiment = client, experiment
        study = f"{found.name} (rubric)"  # no run of the study that may have this name
        self.tags = {"task": found.task, "model": found.model, "study": study, "mlflow.source.name": "colever"}

    def of(self, tags: dict[str, str], name: str, parent: str) -> str:
        terms = {"study": self.tags["study"], **tags}
        asked = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in terms.items())
        if found := self.client.search_runs([self.experiment], asked, max_results=1):
            return str(found[0].info.run_id)
        labels = self.tags | tags | ({"mlflow.parentRunId": parent} if parent else {})
        now = round(1000 * time.time())
        return str(self.client.create_run(self.experiment, start_time=now, tags=labels, run_name=name).info.run_id)

    def log(self, run: str, points: dict[str, float], tags: dict[str, str]) -> None:
        from mlflow.entities import Metric, RunTag

        known, now = self.client.get_run(run).data.metrics, round(1000 * time.time())  # of two, the later one counts
        metrics = [Metric(key, value, now, 0) for key, value in points.items() if known.get(key) != value]
        self.client.log_batch(run, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
