"""Finished cells of ``weight_levers.py`` as files, and what is read off them: means with intervals, table, figure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from colever.optimizers.statistics import wilson
from colever.reported import Estimate

RESAMPLES, CHUNK, LEVEL = 10_000, 500, 0.95


@dataclass(frozen=True)
class Result:
    """One training and its evaluation on test: gold and rubric score per example, in order."""

    task: str
    lever: str
    seed: int
    golds: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    seconds: float = 0.0  # of training alone, by the clock
    cpu_seconds: float = 0.0  # of this process, over the same time
    rollouts: int = 0
    policy_failures: int = 0
    failed: str = ""  # the error, where there is no result
    notes: Mapping[str, Any] = field(default_factory=dict)


class Folder:
    """Results by task, lever, seed and the digest of everything they depend on; a failed one is not kept as done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def get(self, task: str, lever: str, seed: int, digest: str) -> Result | None:
        file = self._file(task, lever, seed, digest)
        if not file.is_file():
            return None
        values = json.loads(file.read_text(encoding="utf-8"))
        result = Result(**values | {name: tuple(values[name]) for name in ("golds", "scores")})
        return None if result.failed else result

    def put(self, result: Result, digest: str) -> None:
        file = self._file(result.task, result.lever, result.seed, digest)
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(result)), encoding="utf-8")
        os.replace(aside, file)

    def _file(self, task: str, lever: str, seed: int, digest: str) -> Path:
        return self.path / f"{task}-{lever}-s{seed}-{digest[:12]}.json"


def over_seeds_and_examples(values_SN: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of S training seeds × N examples with its 95 % interval: see ``difference``.

    Where all values are equal resampling says nothing: then Wilson's interval over examples.
    """
    values = np.array(values_SN, dtype=float)
    if np.ptp(values) == 0 and values.flat[0] in (0.0, 1.0):
        return wilson(int(values.flat[0]) * values.shape[1], values.shape[1])
    low, high = _percentiles([values], seed)
    return Estimate(float(values.mean()), low, high)


def difference(a_SN: Sequence[Sequence[float]], b_SN: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """mean(a) − mean(b) with its 95 % interval, for two levers on the same examples.

    A crossed percentile bootstrap (Owen 2007, arXiv:0712.1111): examples are drawn once for all seeds and both
    levers, since they are the same ones; seeds for each lever by themselves. With three seeds it has seen little of
    how seeds vary, so that intervals are rather too narrow than too wide.
    """
    a, b = np.array(a_SN, dtype=float), np.array(b_SN, dtype=float)
    low, high = _percentiles([a, -b], seed)
    return Estimate(float(a.mean() - b.mean()), low, high, resolved=low > 0 or high < 0)


def _percentiles(terms: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    rng = np.random.Generator(np.random.Philox(seed))
    examples, means = terms[0].shape[1], []
    for _ in range(RESAMPLES // CHUNK):
        weight_RN = rng.multinomial(examples, [1 / examples] * examples, CHUNK) / examples
        total = np.zeros(CHUNK)
        for values in terms:
            seeds = values.shape[0]
            weight_RS = rng.multinomial(seeds, [1 / seeds] * seeds, CHUNK) / seeds
            total += ((weight_RS @ values) * weight_RN).sum(axis=1)
        means.append(total)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


@dataclass(frozen=True)
class Line:
    """One lever on one task, over its seeds."""

    gold: Estimate
    score: Estimate
    seconds: float
    cpu_seconds: float
    rollouts: float
    seeds: int


def line(results: Sequence[Result]) -> Line | None:
    """None where no seed has a result."""
    done = [r for r in results if not r.failed]
    if not done:
        return None
    return Line(
        over_seeds_and_examples([r.golds for r in done]),
        over_seeds_and_examples([r.scores for r in done]),
        *(float(np.mean([getattr(r, name) for r in done])) for name in ("seconds", "cpu_seconds", "rollouts")),
        seeds=len(done),
    )


def table(results: Sequence[Result], levers: Sequence[str]) -> list[str]:
    """The comparison in lines of text: percent with 95 % intervals, means over seeds of everything else."""
    head = ("task", "lever", "seeds", "gold [95 %]", "by seed", "score [95 %]", "s", "CPU s", "rollouts", "base")
    rows: list[Sequence[str]] = [head]
    notes = []
    for task in dict.fromkeys(r.task for r in results):
        base = line(of(results, task, "base"))
        for lever in ("base", *levers):
            mine = of(results, task, lever)
            found = line(mine)
            notes += [f"{task}, {lever}, seed {r.seed} failed: {r.failed}" for r in mine if r.failed]
            if found is None:
                rows.append((task, lever, "0", "failed" if mine else "not run", *[""] * 5, _percent(base)))
                continue
            each = " ".join(f"{100 * np.mean(r.golds):.1f}" for r in mine if not r.failed)
            cost = ("", "", "") if lever == "base" else (
                f"{found.seconds:.0f}", f"{found.cpu_seconds:.0f}", f"{found.rollouts:.0f}"
            )  # fmt: skip
            rows.append((task, lever, str(found.seeds), _interval(found.gold), each, _interval(found.score), *cost,
                         _percent(base)))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows] + notes


def leads(results: Sequence[Result], first: str, others: Sequence[str]) -> list[str]:
    """How far ``first`` is ahead of each other lever, in points of gold, with its interval."""
    lines = []
    for task in dict.fromkeys(r.task for r in results):
        ours = [r.golds for r in of(results, task, first) if not r.failed]
        for other in others:
            theirs = [r.golds for r in of(results, task, other) if not r.failed]
            if ours and theirs:
                lead = difference(ours, theirs)
                low, high = 100 * lead.low, 100 * lead.high
                unresolved = "" if lead.resolved else " (unresolved)"
                lines.append(f"{task}: {first} − {other} {100 * lead.value:+.1f} [{low:+.1f}, {high:+.1f}]{unresolved}")
    return lines


def as_json(results: Sequence[Result], levers: Sequence[str]) -> dict[str, Any]:
    """{task: {lever: {score, low, high, seconds, cpu_seconds}}}: gold in percent; None where a lever has no result."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(r.task for r in results):
        for lever in ("base", *levers):
            it = line(of(results, task, lever))
            gold = {} if it is None else {"score": it.gold.value, "low": it.gold.low, "high": it.gold.high}
            values = {k: round(100 * gold[k], 2) if gold else None for k in ("score", "low", "high")}
            if lever != "base":
                values["seconds"] = round(it.seconds, 1) if it is not None else None
                values["cpu_seconds"] = round(it.cpu_seconds, 1) if it is not None else None
            found.setdefault(task, {})[lever] = values
    return found


def draw(results: Sequence[Result], levers: Sequence[str], file: Path) -> None:
    """Gold per task and lever with its interval, and a small point for each seed."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(r.task for r in results))
    colours = {"base": "#8c8c8c", "colever": "#0072b2", "dspy_grpo": "#e69f00", "trl": "#d55e00"}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, lever in enumerate(("base", *levers)):
        for t, task in enumerate(tasks):
            mine = of(results, task, lever)
            if (found := line(mine)) is None:
                continue
            x, gold = t + 0.17 * (place - len(levers) / 2), found.gold
            bars = [[100 * (gold.value - gold.low)], [100 * (gold.high - gold.value)]]
            axes.errorbar([x], [100 * gold.value], bars, fmt="o", capsize=4, color=colours[lever],
                          label=lever if t == 0 else None)  # fmt: skip
            seeds = [100 * np.mean(r.golds) for r in mine if not r.failed]
            axes.scatter([x + 0.045] * len(seeds), seeds, s=8, color=colours[lever], alpha=0.6)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(
        ylabel="gold on test (%)", ylim=(0, 103), title="The same program, model and rollouts: three ways to train"
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=140, facecolor="white")


def of(results: Sequence[Result], task: str, lever: str) -> list[Result]:
    return [r for r in results if (r.task, r.lever) == (task, lever)]


def _interval(e: Estimate) -> str:
    return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def _percent(found: Line | None) -> str:
    return "" if found is None else f"{100 * found.gold.value:.1f}"
