"""Every setting, once: checked by pydantic, unknown keys refused, read from YAML and overridden by flags.

Knows names, types, defaults and bounds; knows nothing of what a setting does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from colever.errors import UsageError

LEVER_LETTERS: dict[str, Literal["prompt", "weights"]] = {"p": "prompt", "w": "weights"}
CAPS = ("rollouts", "prompt_tokens", "completion_tokens", "trained_tokens", "flops", "seconds", "dollars")


class Settings(BaseModel):
    """Frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptSettings(Settings):
    """One pull of the prompt lever."""

    way: Literal["choice"] = "choice"
    candidates: int = Field(default=12, ge=0)  # random combinations tried after the base, wordings and demos alone
    demos: int = Field(default=8, ge=0)  # at most so many per predictor; 0 = wordings only
    screen: int = Field(default=32, ge=1)  # train examples on which every combination is scored
    examples: int = Field(default=96, ge=1)  # train examples on which the finalists are scored
    finalists: int = Field(default=4, ge=1)
    threshold: float = Field(default=0.9, ge=0, le=1)  # rubric score from which a rollout may become a demo


class WeightSettings(Settings):
    """One pull of the weight lever: GRPO on the whole program, or likelihood of its best rollouts."""

    way: Literal["grpo", "rejection"] = "grpo"  # rejection: train on each group's best rollouts (a warm start)
    updates: int = Field(default=40, ge=1)
    examples_per_update: int = Field(default=16, ge=1)
    group_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=4, ge=0)  # updates of linear warm-up
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    temperature: float = Field(default=1.0, gt=0, le=2)
    beta: float = Field(default=0.0, ge=0)  # KL penalty against the study's base model
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    importance_sampling_level: Literal["token", "sequence"] = "token"  # sequence with loss grpo: GSPO
    importance_correction: Literal["auto", "on", "off"] = "auto"  # auto: where sampler and trainer may differ
    scale_rewards: Literal["group", "batch", "none"] = "group"
    grouping: Literal["predictor", "trajectory"] = "predictor"
    max_grad_norm: float = Field(default=1.0, gt=0)
    peft: Literal["none", "lora"] = "none"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=64, ge=1)
    curriculum: bool = False  # rather draw examples whose last groups were not constant
    validation: int = Field(default=0, ge=0)  # train examples held out to stop early by; 0: none
    validate_every: int = Field(default=10, ge=1)  # updates between looks at them
    patience: int = Field(default=2, ge=1)  # looks without a better score after which the pull stops
    empty_updates: int = Field(default=8, ge=1)  # updates in a row with nothing to learn after which the pull stops
    batch_tokens: int = Field(default=4096, ge=64)  # tokens computed per forward and backward pass
    save_every: int = Field(default=10, ge=1)  # updates between checkpoints, from which a killed pull goes on


class EngineSettings(Settings):
    """The in-process engine."""

    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch_tokens: int = Field(default=32768, ge=256)


def parse_schedule(text: str) -> tuple[Literal["prompt", "weights"], ...]:
    """``"p,w"`` → ("prompt", "weights"); also ``"p -> w"``. Raises UsageError for anything else."""
    letters = [part.strip() for part in text.replace("->", ",").split(",")]
    if unknown := [letter for letter in letters if letter not in LEVER_LETTERS]:
        raise UsageError(f"schedule {text!r}: {unknown[0]!r} is no lever; accepted: p and w by commas, such as p,w")
    return tuple(LEVER_LETTERS[letter] for letter in letters)


class SweepConfig(Settings):
    """One study: what ``colever sweep`` and ``colever optimize`` run, saved with it as ``config.yaml``."""

    task: str
    model: str = "seed"
    study: str | None = Field(default=None, pattern=r"^\w[\w.-]*$")  # default: <task>-<model>-s<seed>
    seed: int = Field(default=0, ge=0)
    trials: int = Field(default=4, ge=1)
    schedules: tuple[str, ...] = ("p", "w", "p,w", "w,p")  # the first trials, in this order
    max_rounds: int = Field(default=3, ge=1, le=6)  # of a searched schedule
    search: dict[str, tuple[float, float]] | None = None  # setting → (low, high); None: the default space
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    prune: bool = True  # searched trials only; never the first schedules
    budget: dict[str, float] = Field(default_factory=dict)  # caps on the whole study
    round_budget: dict[str, float] = Field(default_factory=dict)  # caps on each round
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    weights: WeightSettings = Field(default_factory=WeightSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)

    @field_validator("schedules")
    @classmethod
    def _schedules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(",".join(lever[0] for lever in parse_schedule(schedule)) for schedule in value)

    @field_validator("budget", "round_budget")
    @classmethod
    def _caps(cls, value: dict[str, float]) -> dict[str, float]:
        check_caps(value)
        return value

    @property
    def study_name(self) -> str:
        """The given name, or one made of task, model and seed."""
        return self.study or f"{_slug(self.task)}-{_slug(self.model)}-s{self.seed}"

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that ``load_config`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


# What another run of the same study may change: how far it goes, not what it is.
RESUMABLE = frozenset({"trials", "budget", "study"})


def check_caps(caps: Mapping[str, float]) -> None:
    """Raises UsageError for an unknown key or a cap that is not a finite number above 0."""
    for key, value in caps.items():
        if key not in CAPS:
            raise UsageError(f"budget: unknown key {key!r}; accepted: {', '.join(CAPS)}")
        if not 0 < value < math.inf:
            raise UsageError(f"budget: {key}={value:g}; accepted: a finite number above 0")


def parse_pairs(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """``["a.b=1"]`` → {"a.b": 1}, values as YAML. Raises UsageError naming the flag."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"{flag} {pair!r}: accepted: KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{flag} {pair!r}: the value is not YAML: {error}") from error
        values[key.strip()] = _number(value)
    return values


def load_config(
    file: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """A study's configuration: the YAML file, then flags that are not None, then dotted overrides.

    Raises UsageError that names the file (or the flag) and the key.
    """
    data: dict[str, Any] = _read_yaml(file) if file is not None else {}
    _build(data, f"{file}" if file is not None else "configuration", partial=True)
    data.update({key: value for key, value in (flags or {}).items() if value is not None})
    for dotted, value in (overrides or {}).items():
        _put(data, dotted.split("."), value, dotted)
    return _build(data, "configuration" if file is None else f"{file} with flags")


def _build(data: Mapping[str, Any], where: str, *, partial: bool = False) -> SweepConfig:
    try:
        return SweepConfig(**({"task": "?"} | dict(data) if partial else data))
    except ValidationError as error:
        lines = [_reason(e) for e in error.errors()]
        raise UsageError(f"{where}: {'; '.join(lines)}") from None


def _reason(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # our own checks name their key
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; accepted here: {', '.join(_accepted(error['loc'][:-1]))}"
    return f"{key}: is needed" if error["type"] == "missing" else f"{key}: {error['msg']}, got {error['input']!r}"


def _accepted(path: Sequence[Any]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in path:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return sorted(model.model_fields)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{file}: accepted: a mapping of settings, such as 'trials: 8'")
    return {key: _numbers(value) for key, value in data.items()}


def _put(data: dict[str, Any], path: Sequence[str], value: Any, dotted: str) -> None:
    for part in path[:-1]:
        inner = data.get(part)
        data[part] = dict(inner) if isinstance(inner, dict) else {}
        data = data[part]
    if not path[-1]:
        raise UsageError(f"--set {dotted}: accepted: a setting such as weights.learning_rate")
    data[path[-1]] = value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list) else _number(value)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; here it is a number."""
    exponent = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]*\d[eE][-+]?\d+", value)
    return float(value) if exponent else value


def _slug(text: str) -> str:
    stem = text.removesuffix("/").rsplit("/", 1)[-1].replace(".py:", "-")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip("-.") or "study"
