"""What a sweep searches: schedules and a few settings, always all of them (a flat space). Knows Optuna's calls only.

A flat space lets one sampler model learn from every trial; a setting of a lever that a schedule leaves out is ignored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from colever.config import ADAPTIVE, PromptSettings, Settings, SweepConfig, WeightSettings, parse_schedule
from colever.errors import UsageError
from colever.optimizers.adaptive import Order, adaptive, fixed, until

if TYPE_CHECKING:
    import optuna

GROUPS: dict[str, type[Settings]] = {"prompt": PromptSettings, "weights": WeightSettings}


@dataclass(frozen=True)
class Range:
    """One searched setting: integers, or floats (log-spaced where low is above 0)."""

    name: str
    low: float
    high: float
    default: float
    whole: bool

    def suggest(self, trial: optuna.Trial) -> float:
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        return trial.suggest_float(self.name, self.low, self.high, log=self.low > 0)


def schedules(config: SweepConfig) -> list[str]:
    """The first schedules, then every other one of up to ``max_rounds`` rounds."""
    every = [",".join(s) for n in range(1, config.max_rounds + 1) for s in itertools.product("pw", repeat=n)]
    return list(dict.fromkeys([*config.schedules, *every]))


def ranges(config: SweepConfig) -> list[Range]:
    """The searched settings. Raises UsageError for one that is unknown, not a number, or whose range leaves its default
    out or holds a value that the setting refuses.
    """
    search = config.search
    if search is None:
        rate, updates = config.weights.learning_rate, config.weights.updates
        search = {"weights.learning_rate": (rate / 3, rate * 3), "weights.updates": (max(1, updates // 2), updates)}
        if config.prompt.demos:
            search["prompt.demos"] = (0, config.prompt.demos)
    return [_range(config, name, low, high) for name, (low, high) in search.items()]


def arm_params(config: SweepConfig, schedule: str) -> dict[str, Any]:
    """An arm is a point of the space: its schedule at the default settings."""
    defaults = {r.name: int(r.default) if r.whole else r.default for r in ranges(config)}
    return {"schedule": schedule, **defaults}


def suggest(trial: optuna.Trial, config: SweepConfig) -> tuple[str, dict[str, Any]]:
    """The trial's schedule and settings."""
    schedule = trial.suggest_categorical("schedule", schedules(config))
    return str(schedule), {r.name: r.suggest(trial) for r in ranges(config)}


def with_settings(
    config: SweepConfig, schedule: str, settings: Mapping[str, Any]
) -> tuple[PromptSettings, WeightSettings]:
    """The two levers' settings with the trial's in place; a weight round of the adaptive schedule is a slice."""
    groups = {"prompt": config.prompt.model_dump(), "weights": config.weights.model_dump()}
    for name, value in settings.items():
        group, _, key = name.partition(".")
        groups[group][key] = value
    if schedule == ADAPTIVE:
        groups["weights"]["updates"] = max(1, round(groups["weights"]["updates"] / config.adaptive_slices))
    return PromptSettings(**groups["prompt"]), WeightSettings(**groups["weights"])


def order_of(config: SweepConfig, schedule: str, target: float) -> Order:
    """Which lever comes next along this schedule; where cost is what counts, none once dev has reached the target."""
    order = adaptive(config.adaptive_rounds) if schedule == ADAPTIVE else fixed(parse_schedule(schedule))
    return until(target, order) if config.objective == "cost" else order


def _range(config: SweepConfig, name: str, low: float, high: float) -> Range:
    group, _, key = name.partition(".")
    fields = GROUPS[group].model_fields if group in GROUPS else {}
    kind = fields[key].annotation if key in fields else None
    if kind not in (int, float):
        numeric = [
            f"{g}.{k}" for g, m in GROUPS.items() for k, f in m.model_fields.items() if f.annotation in (int, float)
        ]
        raise UsageError(f"search: {name!r} is no setting with a number; accepted: {', '.join(numeric)}")
    default = getattr(getattr(config, group), key)
    if not low <= default <= high:
        raise UsageError(f"search: {name}: the arms' value {default} must lie in the range {low} … {high}")
    for edge in (low, high):
        _check_edge(config, name, edge, whole=kind is int)
    return Range(name, low, high, default, kind is int)


def _check_edge(config: SweepConfig, name: str, edge: float, *, whole: bool) -> None:
    """Raises UsageError unless a trial could have this value: found here, not when the first trial draws it."""
    if not math.isfinite(edge) or (whole and edge != int(edge)):
        raise UsageError(f"search: {name}: {edge:g}; accepted: a {'whole' if whole else 'finite'} number")
    group, _, key = name.partition(".")
    try:
        GROUPS[group](**{**getattr(config, group).model_dump(), key: int(edge) if whole else edge})
    except ValidationError as error:
        reasons = "; ".join(e["msg"] for e in error.errors())
        raise UsageError(f"search: {name}: {edge:g} is in the range, but no trial may have it: {reasons}") from None
