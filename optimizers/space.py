"""What a sweep searches: schedules and settings, always all of them (a flat space). Knows Optuna's calls only.

A flat space lets one sampler model learn from every trial; a setting of a lever that a schedule leaves out is ignored.
Names are those of ``prompt.*`` and ``weights.*``, and ``split``: how a trial's rollouts are shared out between levers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from colever.config import (
    ADAPTIVE,
    PROMPT_WAYS,
    WRITTEN_WAYS,
    PromptSettings,
    Settings,
    SweepConfig,
    WeightSettings,
    parse_schedule,
)
from colever.errors import UsageError
from colever.optimizers.adaptive import Order, adaptive, fixed, until, within
from colever.optimizers.split import Planned, share_out

if TYPE_CHECKING:
    import optuna

GROUPS: dict[str, type[Settings]] = {"prompt": PromptSettings, "weights": WeightSettings}
SPLIT, WAY = "split", "prompt.way"
SHARED_OUT = ("weights.updates", "prompt.candidates", "prompt.rollouts")  # follow from a trial's rollouts, if given


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


@dataclass(frozen=True)
class Choice:
    """One searched setting that takes words."""

    name: str
    words: tuple[str, ...]
    default: str

    def suggest(self, trial: optuna.Trial) -> str:
        return str(trial.suggest_categorical(self.name, self.words))


def schedules(config: SweepConfig) -> list[str]:
    """The first schedules, then every other one of up to ``max_rounds`` rounds, of the levers that there are."""
    levers = "pw" if config.trainable else "p"
    every = [",".join(s) for n in range(1, config.max_rounds + 1) for s in itertools.product(levers, repeat=n)]
    return list(dict.fromkeys([*config.schedules, *every]))


def ranges(config: SweepConfig) -> list[Range | Choice]:
    """The searched settings. Raises UsageError for one that is unknown, of another kind, or whose range leaves its
    default out or holds a value that the setting refuses, and for words that do not go together.
    """
    search = config.search if isinstance(config.search, dict) else _around(config, wide=config.search == "wide")
    found = [_searched(config, name, values) for name, values in search.items()]
    _check_words(config, [choice for choice in found if isinstance(choice, Choice)])
    return found


def arm_params(config: SweepConfig, schedule: str) -> dict[str, Any]:
    """An arm is a point of the space: its schedule at the default settings."""
    return {
        "schedule": schedule,
        **{r.name: int(r.default) if isinstance(r, Range) and r.whole else r.default for r in ranges(config)},
    }


def suggest(trial: optuna.Trial, config: SweepConfig) -> tuple[str, dict[str, Any]]:
    """The trial's schedule and settings."""
    schedule = trial.suggest_categorical("schedule", schedules(config))
    return str(schedule), {r.name: r.suggest(trial) for r in ranges(config)}


def with_settings(
    config: SweepConfig, schedule: str, settings: Mapping[str, Any], planned: Planned | None = None
) -> tuple[PromptSettings, WeightSettings]:
    """The two levers' settings with the trial's in place; a weight round of the adaptive schedule is a slice.

    With ``trial_rollouts`` the rounds are as long as their share allows; ``planned`` says what a prompt round takes.
    """
    groups = {"prompt": config.prompt.model_dump(), "weights": config.weights.model_dump()}
    for name, value in settings.items():
        group, _, key = name.partition(".")
        if key:
            groups[group][key] = value
    prompt, weights = PromptSettings(**groups["prompt"]), WeightSettings(**groups["weights"])
    slices = config.adaptive_slices if schedule == ADAPTIVE else 1
    if config.trial_rollouts is not None and planned is not None:
        pulls = (1, slices) if schedule == ADAPTIVE else (schedule.count("p"), schedule.count("w"))
        return share_out(config.trial_rollouts, settings.get(SPLIT, config.split), pulls, prompt, weights, planned)
    return prompt, weights.model_copy(update={"updates": max(1, round(weights.updates / slices))})


def order_of(config: SweepConfig, schedule: str, target: float) -> Order:
    """Which lever comes next along this schedule; where cost is what counts, none once dev has reached the target.

    The adaptive one ends where a trial's rollouts do, if these are given.
    """
    order = adaptive(config.adaptive_rounds) if schedule == ADAPTIVE else fixed(parse_schedule(schedule))
    if schedule == ADAPTIVE and config.trial_rollouts is not None:
        order = within(config.trial_rollouts, order)
    return until(target, order) if config.objective == "cost" else order


def _around(config: SweepConfig, *, wide: bool) -> dict[str, tuple[float, float] | tuple[str, ...]]:
    """What is searched where the user has not said: around the settings' own values."""
    w = config.weights
    search: dict[str, tuple[float, float] | tuple[str, ...]] = {}
    if config.trainable:
        search["weights.learning_rate"] = (w.learning_rate / 3, w.learning_rate * 3)
    if config.trainable and config.trial_rollouts is None:
        search["weights.updates"] = (max(1, w.updates // 2), w.updates)
    elif config.trainable:
        search[SPLIT] = (min(0.1, config.split), max(0.6, config.split))
    if config.prompt.demos:
        search["prompt.demos"] = (int(wide), config.prompt.demos)  # wide: some ways are about nothing else
    if wide:
        search[WAY] = tuple(dict.fromkeys([config.prompt.way, *ways(config)]))
    if wide and config.trainable:
        search["weights.group_size"] = (max(2, w.group_size // 2), 2 * w.group_size)
        search["weights.temperature"] = (min(0.7, w.temperature), max(1.3, w.temperature))
        search["weights.beta"] = (0.0, max(0.04, w.beta))
        search["weights.loss"] = get_args(WeightSettings.model_fields["loss"].annotation)
        if w.peft in ("lora", "dora") or (w.peft == "auto" and (config.model != "seed" or w.adapters != "shared")):
            search["weights.lora_rank"] = (max(1, w.lora_rank // 4), 4 * w.lora_rank)
    return search


def _searched(config: SweepConfig, name: str, values: Sequence[Any]) -> Range | Choice:
    if name == SPLIT:
        if config.trial_rollouts is None:
            raise UsageError("search: split: there is nothing to split without trial_rollouts")
        low, high = _limits(name, values)
        if not 0 < low <= config.split <= high < 1:
            raise UsageError(f"search: split: accepted: a range inside 0 … 1 that holds {config.split}")
        return Range(name, low, high, config.split, False)
    if name == WAY:
        return _ways(config, values)
    if name in SHARED_OUT and config.trial_rollouts is not None:
        raise UsageError(f"search: {name}: it follows from trial_rollouts and split; accepted in its place: {SPLIT}")
    group, _, key = name.partition(".")
    fields = GROUPS[group].model_fields if group in GROUPS else {}
    kind = fields[key].annotation if key in fields else None
    if get_origin(kind) is Literal:
        return _choice(config, name, values, get_args(kind))
    if kind not in (int, float):
        raise UsageError(f"search: {name!r} is no setting that can be searched; accepted: {', '.join(_searchable())}")
    low, high = _limits(name, values)
    default = getattr(getattr(config, group), key)
    if not low <= default <= high:
        raise UsageError(f"search: {name}: the arms' value {default} must lie in the range {low} … {high}")
    for edge in (low, high):
        _check_edge(config, name, edge, whole=kind is int)
    return Range(name, low, high, default, kind is int)


def ways(config: SweepConfig) -> list[str]:
    """Those that a wide search draws from: without a proposer, those that need none; instructions are in "choice"."""
    usable = [name for name in PROMPT_WAYS if name not in WRITTEN_WAYS or config.proposer.model is not None]
    return [name for name in usable if name != "instructions"]


def drawn_ways(config: SweepConfig) -> tuple[str, ...]:
    """Every way that a trial of this study may pull the prompt lever in."""
    found = [choice for choice in ranges(config) if isinstance(choice, Choice) and choice.name == WAY]
    return found[0].words if found else (config.prompt.way,)


def left_out(config: SweepConfig) -> str:
    """A line on ways that were to be searched and need a proposer, where there is none; "" where there are none."""
    asked = config.search[WAY] if isinstance(config.search, dict) and WAY in config.search else ()
    asked = PROMPT_WAYS if config.search == "wide" else asked
    lost = [str(name) for name in asked if name in WRITTEN_WAYS and config.proposer.model is None]
    return f"Without a proposer (--prompt-model) the search leaves out {', '.join(lost)}." if lost else ""


def _ways(config: SweepConfig, words: Sequence[Any]) -> Choice:
    """Raises UsageError for a way that is none, or is about demos where a trial may draw none."""
    usable = [str(w) for w in words if w not in WRITTEN_WAYS or config.proposer.model is not None]
    if unknown := [w for w in usable if w not in PROMPT_WAYS and ":" not in w]:
        raise UsageError(f"search: {WAY}: {unknown[0]!r}; accepted: {', '.join(PROMPT_WAYS)}, or module:attr")
    if config.prompt.way not in usable:
        among = ", ".join(usable) or "at least one word"
        raise UsageError(f"search: {WAY}: the arms' value {config.prompt.way} must be among {among}")
    search = config.search if isinstance(config.search, dict) else {}
    fewest = search.get("prompt.demos", (config.prompt.demos,))[0]
    if config.search != "wide" and fewest == 0 and (bare := [w for w in usable if w in ("fewshot", "knn")]):
        raise UsageError(f"search: {WAY}: {bare[0]} is about demos, and prompt.demos may be 0; accepted: 1 or more")
    return Choice(WAY, tuple(dict.fromkeys(usable)), config.prompt.way)


def _choice(config: SweepConfig, name: str, words: Sequence[Any], accepted: Sequence[str]) -> Choice:
    group, _, key = name.partition(".")
    default = getattr(getattr(config, group), key)
    if unknown := [word for word in words if word not in accepted]:
        raise UsageError(f"search: {name}: {unknown[0]!r}; accepted: {', '.join(accepted)}")
    if default not in words:
        among = ", ".join(map(str, words)) or "at least one word"
        raise UsageError(f"search: {name}: the arms' value {default} must be among {among}")
    return Choice(name, tuple(dict.fromkeys(words)), default)


def _check_words(config: SweepConfig, choices: Sequence[Choice]) -> None:
    """Raises UsageError where a trial could draw two words, or one, that do not go with each other or with the rest."""
    for one, other in itertools.combinations_with_replacement(choices, 2):
        for drawn in itertools.product(one.words, other.words):
            data = config.model_dump()
            for choice, word in zip((one, other), drawn, strict=True):
                group, _, key = choice.name.partition(".")
                data[group][key] = word
            try:
                SweepConfig(**data)
            except ValidationError as error:
                reasons = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
                raise UsageError(f"search: {one.name}: a trial could draw what no study may have: {reasons}") from None


def _limits(name: str, values: Sequence[Any]) -> tuple[float, float]:
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise UsageError(f"search: {name}: {list(values)}; accepted: [low, high]")
    return values[0], values[1]


def _searchable() -> list[str]:
    return [
        f"{group}.{key}"
        for group, model in GROUPS.items()
        for key, field in model.model_fields.items()
        if field.annotation in (int, float) or (get_origin(field.annotation) is Literal and key != "way")
    ] + [SPLIT]


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
