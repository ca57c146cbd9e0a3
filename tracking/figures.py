"""A study as pictures: levers, score against cost, rubric against gold, training curves. Reads a StudyReport only.

Drawn without a display (Agg canvas, no pyplot state). Shares are in percent, effects in points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.looks import Guarded
from colever.reported import ArmRow, Cell, Estimate, StudyReport
from colever.tracking.report import ARMS, EFFECTS, main_effects, measure, spelled, verdict
from colever.types import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
# Okabe and Ito's palette: told apart by colour-blind readers, and in print.
GREY, ORANGE, BLUE, GREEN, RED, INK = "#8c8c8c", "#e69f00", "#0072b2", "#009e73", "#d55e00", "#262626"
LEVER_COLOURS = {"base": GREY, "prompt": ORANGE, "weights": BLUE, "both": GREEN, "interaction": GREY}
PALETTE = (GREEN, "#cc79a7", "#56b4e9", RED, "#f0e442", GREY, INK, "#7f3c8d")  # of arms that pull both levers
COST_UNITS: Mapping[str, Callable[[Cost], float]] = {
    "rollouts": lambda cost: cost.rollouts,
    "computed TFLOPs": lambda cost: cost.flops / 1e12,
    "minutes": lambda cost: cost.seconds / 60,
    "million tokens": lambda cost: cost.tokens / 1e6,
    "dollars": lambda cost: cost.dollars,
}
# The training curves that are drawn, with their axis labels (one line per predictor where the lever logs
# ``<name>/<predictor>``); others are MLflow metrics only.
CURVES = {
    "reward": "reward (mean)",
    "constant_share": "constant groups (share)",
    "entropy": "entropy (nats per token)",
    "completion_tokens": "completion length (tokens)",
}


def save_all(report: StudyReport, directory: Path) -> list[Path]:
    """Write every figure that the report has data for as PNG into ``directory``; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn: Mapping[str, Figure | None] = {
        "1-levers": levers(report),
        "2-cost": score_against_cost(report),
        "3-rubric-and-gold": rubric_and_gold(report),
        "4-training": training(report),
    }
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(directory / f"{name}.png")
            figure.savefig(paths[-1], dpi=140, facecolor="white")
    return paths


def levers(report: StudyReport) -> Figure | None:
    """The arms on test with their intervals, and what each lever earned."""
    pulled = {name: cell for name, cell in report.table.items() if cell.score is not None}
    if not report.finished or not pulled:
        return None
    effects = {name: effect for name, effect in main_effects(report).items() if name != "gain"}
    figure, axes = canvas(2 if effects else 1, verdict(report))
    _arms(axes[0], report, pulled)
    if effects:
        _effects(axes[1], effects, measure(report))
    return figure


def score_against_cost(report: StudyReport) -> Figure | None:
    """Dev after every round of every trial, against rollouts and against counted compute."""
    arms = drawn_arms(report)
    if not arms:
        return None
    figure, axes = canvas(
        2, f"{report.task}: {measure(report)} on dev against cost, one point at the end of each round"
    )
    for axis, (unit, cost_of) in zip(axes, COST_UNITS.items(), strict=False):
        for arm, colour, width in arms:
            x, y = [cost_of(cost) for cost, _ in arm.curve], [100 * value for _, value in arm.curve]
            style: dict[str, Any] = {
                "color": colour,
                "linewidth": width,
                "markersize": width + 3,
                "zorder": 3 - width / 100,
            }
            axis.plot(x, y, "o-", label=arm_label(arm), **style)
        _percent_axis(axis, f"{measure(report)} on dev (%)")
        _target(axis, report.target)
        axis.set_xlabel(f"cost so far ({unit})")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def rubric_and_gold(report: StudyReport) -> Figure | None:
    """Rubric score and gold along the winner's path, and of every trial's rounds: where only the rubric rises, it is
    being gamed. Alarms of the guard are marked."""
    if not report.path:
        return None
    judged = report.guard is not None and bool(report.guard.rounds)
    figure, (axis, *more) = canvas(
        2 if judged else 1, f"{report.task}: the winner's path on dev, {spelled(report.winner)}"
    )
    if report.guard is not None and more:
        _score_and_gold(more[0], report.guard)
    states = [report.path[0].before, *(record.after for record in report.path)]
    rounds = range(len(states))
    axis.plot(
        rounds,
        [100 * s.score for s in states],
        "o-",
        color=GREEN,
        linewidth=2,
        label="rubric score (what the levers see)",
    )
    if report.has_gold:
        golds = [100 * s.gold if s.gold is not None else float("nan") for s in states]
        axis.plot(rounds, golds, "s--", color=INK, linewidth=2, label="gold (what no lever reads)")
    alarms = {judged.key for judged in report.guard.alarms} if report.guard else set()
    if caught := [i for i, record in enumerate(report.path, 1) if record.key in alarms]:
        heights = [100 * states[i].score for i in caught]
        axis.plot(caught, heights, "o", color=RED, markersize=13, fillstyle="none", label="alarm: reward hacking")
    labels = ["base", *(f"{i} {r.lever}" + ("" if r.accepted else "\nnot kept") for i, r in enumerate(report.path, 1))]
    axis.set_xticks(list(rounds), labels)
    axis.set_xlabel("round")
    _percent_axis(axis, "mean on dev (%)")
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def training(report: StudyReport) -> Figure | None:
    """Reward, constant groups, entropy and completion length over the updates of the winner's weight rounds."""
    lines: dict[str, list[tuple[str, Points]]] = {name: [] for name in CURVES}
    for index, record in enumerate(report.path, 1):
        for key, curve in record.metrics.items() if record.lever == "weights" else ():
            name, _, predictor = key.removeprefix("train/").partition("/")
            if name in lines and curve:
                lines[name].append((f"round {index}" + (f", {predictor}" if predictor else ""), curve))
    drawn = [name for name in CURVES if lines[name]]
    if not drawn:
        return None
    figure, axes = canvas(len(drawn), f"{report.task}: training in the winner's weight rounds", columns=2)
    for axis, name in zip(axes, drawn, strict=True):
        for colour, (label, curve) in zip((BLUE, *PALETTE), lines[name], strict=False):
            _curve(axis, curve, colour, label)
        axis.set_xlabel("update")
        axis.set_ylabel(CURVES[name])
        axis.legend(frameon=False, loc="best", fontsize=9)
    return figure


def cost_units(report: StudyReport) -> list[str]:
    """Those of COST_UNITS that the report has costs in."""
    return [unit for unit, cost_of in COST_UNITS.items() if unit != "dollars" or cost_of(report.cost)]


def drawn_arms(report: StudyReport) -> list[tuple[ArmRow, str, int]]:
    """The trials whose curves are drawn, best on dev first, each with its colour and line width.

    Arms that share a round share a line: the shorter arm is wider, to be drawn behind the longer one.
    """
    arms = [arm for arm in sorted(report.arms, key=lambda a: -a.dev) if arm.curve][: len(PALETTE)]
    most = max((len(arm.curve) for arm in arms), default=0)
    alone, spare = {"p": LEVER_COLOURS["prompt"], "w": LEVER_COLOURS["weights"]}, iter(PALETTE)
    return [(arm, alone.get(arm.schedule) or next(spare), 2 + 2 * (most - len(arm.curve))) for arm in arms]


def arm_label(arm: ArmRow) -> str:
    return f"{spelled(arm.schedule)} (#{arm.trial})"


# --- pieces --------------------------------------------------------------------------------------


def _arms(axis: Axes, report: StudyReport, pulled: Mapping[str, Cell]) -> None:
    """Bars of gold (or score) with whiskers; where both are there, the score is a light bar beside gold's."""
    names = list(pulled)
    width = 0.38 if report.has_gold else 0.6
    kinds: Sequence[tuple[str, float, float]] = (
        [("gold", -width / 2, 1.0), ("score", width / 2, 0.35)] if report.has_gold else [("score", 0.0, 1.0)]
    )
    for kind, shift, alpha in kinds:
        for place, name in enumerate(names):
            estimate: Estimate | None = getattr(pulled[name], kind)
            if estimate is None:
                continue
            value, colour = 100 * estimate.value, LEVER_COLOURS.get(name, INK)
            whisker = [[value - 100 * estimate.low], [100 * estimate.high - value]]
            axis.bar(place + shift, value, width, color=colour, alpha=alpha)
            axis.errorbar(place + shift, value, yerr=whisker, color=INK, capsize=3, linewidth=1)
            axis.text(place + shift, 100 * estimate.high + 1, f"{value:.1f}", ha="center", va="bottom", fontsize=9,
                      bbox={"boxstyle": "square,pad=0.1", "color": "white"}, zorder=4)  # fmt: skip
    axis.set_xticks(
        range(len(names)), [ARMS.get(n, n) + (f"\n{pulled[n].schedule}" if pulled[n].schedule else "\n") for n in names]
    )
    axis.set_title("dark: gold, light: rubric score, on test" if report.has_gold else "rubric score on test", **_SMALL)
    _percent_axis(axis, "mean on test with 95 % interval (%)", from_zero=True)
    _target(axis, report.target)


def _score_and_gold(axis: Axes, guard: Guarded) -> None:
    """Every round that the guard looked at, from base; below the line, gold accounts for the score."""
    base = guard.base or (0.0, 0.0)
    worth = guard.rounds[0].look.worth
    ends = [base[1], 1.0] if all(r.gold >= base[1] for r in guard.rounds) else [0.0, 1.0]
    heights = [100 * (base[0] + worth * (x - base[1])) for x in ends]
    axis.plot([100 * x for x in ends], heights, "--", color=GREY, label="what gold accounts for")
    for kind, colour, label in ((False, BLUE, "round"), (True, RED, "alarm: reward hacking")):
        shown = [r for r in guard.rounds if r.look.alarm is kind]
        if shown:
            axis.plot([100 * r.gold for r in shown], [100 * r.score for r in shown], "o", color=colour, label=label)
    axis.plot([100 * base[1]], [100 * base[0]], "s", color=INK, label="base")
    axis.set_xlabel("gold on dev (%)")
    _percent_axis(axis, "rubric score on dev (%)")
    axis.set_title("every round that scored better", **_SMALL)
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _effects(axis: Axes, effects: Mapping[str, Estimate], on: str) -> None:
    for place, (name, effect) in enumerate(effects.items()):
        value = 100 * effect.value
        whisker = [[value - 100 * effect.low], [100 * effect.high - value]]
        colour = LEVER_COLOURS.get(name, INK)
        axis.bar(place, value, 0.6, color=colour, alpha=1.0 if effect.resolved else 0.35)
        axis.errorbar(place, value, yerr=whisker, color=INK, capsize=3, linewidth=1)
        note = f"{value:+.1f}" if effect.resolved else f"{value:+.1f}\nunresolved"
        axis.text(place, max(100 * effect.high, 0) + 0.6, note, ha="center", va="bottom", fontsize=9)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(effects)), [EFFECTS.get(n, n).replace(" ", "\n", 1) for n in effects])
    axis.set_ylabel(f"effect on {on} with 95 % interval (points)")
    axis.set_title("what each lever earned", **_SMALL)
    axis.margins(y=0.15)


def _curve(axis: Axes, curve: Points, colour: str, label: str) -> None:
    """The raw values faintly, and their running mean over a tenth of the curve."""
    x, y = [step for step, _ in curve], [value for _, value in curve]
    window = max(1, len(y) // 10)
    smooth = [sum(y[max(0, i - window + 1) : i + 1]) / len(y[max(0, i - window + 1) : i + 1]) for i in range(len(y))]
    axis.plot(x, y, color=colour, alpha=0.3, linewidth=1)
    axis.plot(x, smooth, color=colour, linewidth=2, label=label)


_SMALL: dict[str, Any] = {"fontsize": 10, "color": INK, "loc": "left"}


def canvas(panels: int, title: str, columns: int = 2) -> tuple[Figure, list[Axes]]:
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = -(-panels // columns)
    width = 5.2 * columns if columns > 1 else 7.0
    figure = Figure(figsize=(width, 0.5 + 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(textwrap.wrap(title, int(11 * width))), fontsize=11, x=0.01, ha="left", color=INK)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _percent_axis(axis: Axes, label: str, *, from_zero: bool = False) -> None:
    bottom = 0 if from_zero else max(0, 10 * int(axis.get_ylim()[0] // 10))
    step = 20 if bottom < 40 else 10
    axis.set_yticks(range(bottom - bottom % step, 101, step))
    axis.set_ylim(bottom, 104)
    axis.set_ylabel(label)


def _target(axis: Axes, target: float) -> None:
    axis.axhline(100 * target, color=RED, linewidth=1, linestyle=":")
    axis.annotate(f"target {100 * target:g} %", (0.005, 100 * target), xycoords=("axes fraction", "data"), fontsize=8,
                  color=RED, va="bottom")  # fmt: skip
