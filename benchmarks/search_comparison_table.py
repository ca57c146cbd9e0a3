"""What the methods of ``search_comparison.py`` scored on test, over training seeds and examples: rows, tables, JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_comparison_methods import BASE, ORDERS, SEARCHED, SIX, Paths, at

from colever.config import ADAPTIVE
from colever.optimizers.estimate import scaled
from colever.optimizers.statistics import Values, mean_over_seeds, seeds_effect
from colever.reported import Estimate
from colever.types import Candidate, Cost

BLIND, ORACLE = "one of the six, blindly", "the best of the six, in hindsight"
WORDS = {
    "grpo": "BetterTogether, WeightTeleprompter",
    "finetune": "BetterTogether, BootstrapFinetune",
    ADAPTIVE: "adaptive",
}
CAPS = (1.0, 2.0, 4.0)  # of what BetterTogether with our weight lever spent in the same seed
Read = Callable[[int, Candidate], Values]  # seed, candidate → its values on test, one list per candidate


@dataclass(frozen=True)
class Row:
    """A method over the seeds that have it; effects are less another method, over the seeds that have both."""

    name: str
    seeds: int
    cost: Cost  # mean over seeds
    test: Estimate
    less: Mapping[str, Estimate] = field(default_factory=dict)


class Results:
    """One task: the paths of every seed, and how a candidate's values on test are read."""

    def __init__(self, task: str, paths: Mapping[int, Paths], read: Read) -> None:
        self.task, self.paths, self.read = task, paths, read
        self.oracle = ""  # none while it is looked for
        self.oracle = self._oracle()

    def names(self) -> list[str]:
        """Methods in the order of the table, those that some seed has."""
        every = [BASE, *ORDERS, BLIND, ORACLE, SIX, ADAPTIVE, SEARCHED, *WORDS]
        return [n for n in dict.fromkeys(every) if any(self._has(n, seed) for seed in self.paths)]

    def row(self, name: str, cap: float = math.inf) -> Row | None:
        """At full cost, or at ``cap`` times what BetterTogether with our weight lever spent; None where it has none."""
        runs = {seed: run for seed in self.paths if (run := self._run(name, seed, cap)) is not None}
        if not runs:
            return None
        test = mean_over_seeds([values for values, _ in runs.values()])
        assert test is not None
        cost = scaled(sum((c for _, c in runs.values()), Cost()), 1 / len(runs))
        less = {}
        for other in (ORACLE, SEARCHED):
            both = [s for s in runs if name != other and self._run(other, s, cap) is not None]
            terms = [(1, [runs[s][0] for s in both]), (-1, [self._values(other, s, cap) for s in both])]
            if both and (effect := seeds_effect(terms)) is not None:  # type: ignore[arg-type]
                less[other] = effect
        return Row(name, len(runs), cost, test, less)

    def _has(self, name: str, seed: int) -> bool:
        return self._run(name, seed, math.inf) is not None

    def _values(self, name: str, seed: int, cap: float) -> Values:
        run = self._run(name, seed, cap)
        assert run is not None
        return run[0]

    def _run(self, name: str, seed: int, cap: float) -> tuple[Values, Cost] | None:
        """A seed's values on test and what was spent for them."""
        if name == BLIND:
            six = [self._run(order, seed, cap) for order in ORDERS]
            known = [run for run in six if run is not None]
            if len(known) < len(six):
                return None
            return _averages([values for values, _ in known]), scaled(sum((c for _, c in known), Cost()), 1 / len(six))
        path = self.paths[seed].get(self.oracle if name == ORACLE else name)
        limit = self._cap(seed, cap)
        point = at(path, limit) if path is not None and limit is not None else None
        return None if point is None else (self.read(seed, point.candidate), point.cost)

    def _cap(self, seed: int, cap: float) -> float | None:
        if math.isinf(cap):
            return math.inf
        unit = self.paths[seed].get("grpo")
        return None if unit is None else cap * unit[-1].cost.flops

    def _oracle(self) -> str:
        """The order that is best on test over all seeds: nobody can know it before; the cheaper of equals."""

        def rank(order: str) -> tuple[float, float]:
            row = self.row(order)
            return (row.test.value, -row.cost.flops) if row is not None else (-math.inf, 0.0)

        return max(ORDERS, key=rank)


def _averages(runs: Sequence[Values]) -> Values:
    return [None if None in values else sum(values) / len(values) for values in zip(*runs, strict=True)]  # type: ignore[arg-type]


def table(results: Results) -> list[str]:
    """Markdown: what each method spent in full and what it came to; the same at equal cost."""
    lines = [
        f"{results.task}: at full cost; best order in hindsight: {results.oracle}",
        "",
        f"| method | seeds | TFLOPs | rollouts | min | test [95 %] | less {ORACLE} | less {SEARCHED} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in results.names():
        row = results.row(name)
        assert row is not None
        cells = [
            WORDS.get(name, name), str(row.seeds), f"{row.cost.flops / 1e12:.1f}", f"{row.cost.rollouts:,.0f}",
            f"{row.cost.seconds / 60:.1f}", percent(row.test), *(effect(row.less.get(o)) for o in (ORACLE, SEARCHED)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *capped(results)]


def capped(results: Results) -> list[str]:
    """Markdown: test at the same caps on FLOPs, and the difference to the best order at that cap.

    Without the single orders: one that is cut in a round has nothing of it, where its user would have made it smaller.
    """
    unit = results.row("grpo")
    if unit is None:
        return []
    said = f"1× = {unit.cost.flops / 1e12:.1f} TFLOPs on average"
    lines = [
        f"{results.task}: at equal cost, {said}; in brackets: less {ORACLE}, at that cap",
        "",
        f"| method | {' | '.join(f'{cap:g}×' for cap in CAPS)} |",
        "|---|" + "---|" * len(CAPS),
    ]
    for name in (n for n in results.names() if n not in (BASE, *ORDERS)):
        cells = []
        for cap in CAPS:
            row = results.row(name, cap)
            lead = "" if row is None or ORACLE not in row.less else f" ({effect(row.less[ORACLE])})"
            cells.append("not done" if row is None else f"{100 * row.test.value:.1f}{lead}")
        lines.append(f"| {WORDS.get(name, name)} | {' | '.join(cells)} |")
    return [*lines, ""]


def percent(e: Estimate) -> str:
    return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def effect(e: Estimate | None) -> str:
    if e is None:
        return ""
    if e.value == e.low == e.high == 0:
        return "the same"
    unresolved = "" if e.resolved else " *unresolved*"
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]{unresolved}"


def as_json(results: Results) -> dict[str, Any]:
    """{method: seeds, cost, test in percent, differences in points, and test at each cap}."""
    found: dict[str, Any] = {"hindsight": results.oracle}
    for name in results.names():
        row = results.row(name)
        assert row is not None
        capped_rows = {f"{cap:g}": results.row(name, cap) for cap in CAPS}
        found[name] = {
            "seeds": row.seeds,
            "tflops": round(row.cost.flops / 1e12, 2),
            "rollouts": round(row.cost.rollouts),
            "minutes": round(row.cost.seconds / 60, 2),
            "test": _numbers(row.test),
            "less": {other: [*_numbers(e), e.resolved] for other, e in row.less.items()},
            "at": {cap: None if r is None else round(100 * r.test.value, 2) for cap, r in capped_rows.items()},
        }
    return found


def _numbers(e: Estimate) -> list[float]:
    return [round(100 * value, 2) for value in (e.value, e.low, e.high)]
