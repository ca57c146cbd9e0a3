"""Every setting, once: checked by pydantic, unknown keys refused; ``loading`` reads them from YAML and flags.

Knows names, types, defaults and bounds; knows nothing of what a setting does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from colever.engine_settings import EngineSettings
from colever.errors import UsageError
from colever.setting import Settings
from colever.setting import setting as _setting
from colever.training_settings import TrainingSettings

ADAPTIVE = "adaptive"
PROMPT_WAYS = ("choice", "instructions", "fewshot", "knn", "mipro", "gepa", "simba", "copro")
WRITTEN_WAYS = ("mipro", "gepa", "simba", "copro")  # need a proposer: a model that writes prompts
LEAST_CANDIDATES = {"mipro": 3, "simba": 4, "copro": 2}  # fewer leave these ways nothing to search
MINIBATCH = 3  # examples of one of gepa's reflections, as gepa has it
API = "api:"  # what the name of a policy behind an API begins with
UNTRAINABLE = "API models cannot be trained here: the weight lever is left out"
LEVER_LETTERS: dict[str, Literal["prompt", "weights"]] = {"p": "prompt", "w": "weights"}
CAPS = (
    *("rollouts", "prompt_tokens", "completion_tokens", "trained_tokens", "flops", "seconds", "dollars"),
    *("proposer_calls", "proposer_tokens", "judge_calls", "judge_tokens"),
)


class PromptSettings(Settings):
    """One pull of the prompt lever."""

    way: str = _setting(
        "choice",
        f"how it pulls: {', '.join(PROMPT_WAYS)}, or your own teleprompter as module:attr or file.py:attr; see "
        "docs/prompt-lever.md",
    )
    candidates: int = _setting(12, "random combinations, or what the way's optimizer calls candidates", ge=0)
    demos: int = _setting(8, "at most so many per predictor; 0 = none", ge=0)
    screen: int = _setting(32, "train examples on which every combination is scored; a minibatch", ge=1)
    examples: int = _setting(96, "train examples on which the best compete", ge=1)
    finalists: int = _setting(4, "choice: combinations that are scored on more examples", ge=1)
    threshold: float = _setting(0.9, "rubric score from which a rollout may become a demo", ge=0, le=1)
    steps: int = _setting(3, "copro: its depth; simba: its steps", ge=1)
    rollouts: int = _setting(600, "gepa: its metric calls", ge=1)
    headroom: Literal["auto", "on", "off"] = _setting(
        "auto", "a test whether prompts can gain at all, before the search; auto: for the ways that need a proposer"
    )
    headroom_candidates: int = _setting(16, "of the headroom test", ge=2)
    headroom_examples: int = _setting(48, "train examples of the headroom test", ge=4)
    headroom_gain: float = _setting(0.05, "no go where the 95 % interval of the gain lies below this", ge=0, le=1)


class WeightSettings(Settings):
    """One pull of the weight lever: GRPO on the whole program, or likelihood of its best rollouts."""

    way: Literal["grpo", "rejection"] = _setting("grpo", "rejection trains on each group's best rollouts: a warm start")
    updates: int = _setting(40, "updates of the weights", ge=1)
    examples_per_update: int = _setting(16, "train examples in an update", ge=1)
    group_size: int = _setting(8, "rollouts of an example, whose rewards are compared", ge=2)
    learning_rate: float = _setting(1e-4, "of the updates after the warm-up", gt=0)
    warmup: int = _setting(4, "updates of linear warm-up", ge=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = _setting("constant", "after the warm-up")
    temperature: float = _setting(1.0, "of sampling in training", gt=0, le=2)
    beta: float = _setting(0.0, "KL penalty against the study's base model", ge=0)
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = _setting("dapo", "TRL's loss of that name")
    importance_sampling_level: Literal["token", "sequence"] = _setting("token", "sequence with loss grpo is GSPO")
    importance_correction: Literal["auto", "on", "off"] = _setting("auto", "where sampler and trainer may differ")
    scale_rewards: Literal["group", "batch", "none"] = _setting("group", "whose spread divides the advantages")
    grouping: Literal["predictor", "trajectory"] = _setting("predictor", "what is compared: calls, or whole rollouts")
    step_weights: bool = _setting(True, "a rollout counts the same however many calls it makes")
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm", gt=0)
    peft: Literal["auto", "none", "lora", "dora"] = _setting(
        "auto", "none trains all weights, lora and dora an adapter; auto: none for the seed model, else lora"
    )
    adapters: Literal["shared", "per_predictor"] = _setting(
        "shared", "one adapter for all predictors, or one for each; per_predictor with peft auto: lora"
    )
    lora_rank: int = _setting(16, "of the adapter", ge=1)
    lora_alpha: int = _setting(64, "the adapter is scaled by alpha / rank", ge=1)
    fold: bool = _setting(
        False, "samples under the candidate's prompts and trains behind the task's own, which the child has"
    )
    curriculum: bool = _setting(False, "rather draw examples whose last groups were not constant")
    validation: int = _setting(0, "train examples held out to stop early by; 0 = none", ge=0)
    validate_every: int = _setting(10, "updates between looks at them", ge=1)
    patience: int = _setting(2, "looks without a better score after which the pull stops", ge=1)
    empty_updates: int = _setting(8, "updates in a row with nothing to learn after which the pull stops", ge=1)
    batch_tokens: int = _setting(
        0, "tokens computed per forward and backward pass; 0: 1024 on a CPU, 8192 on a GPU", ge=0
    )
    save_every: int = _setting(10, "updates between checkpoints, from which a killed pull goes on", ge=1)

    @model_validator(mode="after")
    def _adapters_need_peft(self) -> WeightSettings:
        if self.adapters == "per_predictor" and self.peft == "none":
            raise ValueError(
                "weights.adapters=per_predictor needs an adapter to train, and weights.peft=none trains all weights; "
                "accepted with it: peft lora, dora or auto"
            )
        return self


class RemoteSettings(Settings):
    """A model behind an API: how it is asked, and what it costs; see docs/remote.md."""

    timeout: float = _setting(120.0, "seconds without a byte after which a request is given up", gt=0)
    retries: int = _setting(5, "further tries after a busy or broken server, a time-out or a broken answer", ge=0)
    retry_wait: float = _setting(
        1.0, "seconds before the first of them, doubled for each further one; the server's Retry-After wins", ge=0
    )
    concurrency: int = _setting(8, "requests that are open at once", ge=1)
    input_price: float | None = _setting(None, "dollars per million prompt tokens; unset: litellm's list", ge=0)
    output_price: float | None = _setting(None, "the same of completion tokens", ge=0)


class ProposerSettings(RemoteSettings):
    """The model that writes prompts, for ways of the prompt lever that ask one."""

    model: str | None = _setting(
        None, "policy, a name such as openai/gpt-5-mini, or NAME@http://127.0.0.1:8000/v1; unset: no such model"
    )
    temperature: float = _setting(1.0, "of what it writes", ge=0, le=2)
    max_tokens: int = _setting(4096, "of one answer; models that reason get at least 16000", ge=1)


class GuardSettings(Settings):
    """The guard against reward hacking; see docs/guard.md."""

    on_hacking: Literal["warn", "stop", "off"] = _setting(
        "warn", "stop: the child is not kept and its trial ends; reads gold on dev"
    )
    margin: float = _setting(0.05, "of the score: what may be gained without gold", ge=0, le=1)
    form_allowance: float = _setting(0.25, "of the score: what criteria marked as form may add first", ge=0, le=1)
    alpha: float = _setting(0.05, "chance of a false alarm in a trial, over all its looks", gt=0, lt=0.5)


class JudgeSettings(RemoteSettings):
    """Models that judge answers, and others that a task asks; see docs/judges.md."""

    model: str | None = _setting(
        None, "of judges that name none: a name such as openai/gpt-5-mini, or NAME@http://127.0.0.1:8000/v1"
    )


def check_schedule(text: str) -> str:
    """``"p -> w"`` → ``"p,w"``; ``adaptive`` stays. Raises UsageError for anything else."""
    return text if text == ADAPTIVE else ",".join(lever[0] for lever in parse_schedule(text))


def parse_schedule(text: str) -> tuple[Literal["prompt", "weights"], ...]:
    """``"p,w"`` → ("prompt", "weights"); also ``"p -> w"``. Raises UsageError for anything else."""
    letters = [part.strip() for part in text.replace("->", ",").split(",")]
    if unknown := [letter for letter in letters if letter not in LEVER_LETTERS]:
        raise UsageError(
            f"schedule {text!r}: {unknown[0]!r} is no lever; accepted: p and w by commas, such as p,w, or {ADAPTIVE}"
        )
    return tuple(LEVER_LETTERS[letter] for letter in letters)


class SweepConfig(Settings):
    """One study: what ``colever sweep`` and ``colever optimize`` run, saved with it as ``config.yaml``."""

    task: str = Field(description="a bundled or published task, or a file as my_task.py:task")
    data: str | None = _setting(None, "file or folder with a published task's rows; unset: the hub")
    model: str = _setting(
        "seed", "seed, a checkpoint folder, a hub name, or a model behind an API: api:openai/gpt-5-mini"
    )
    rubric: str | None = _setting(None, "a TOML or YAML file in the place of the task's rubric; see docs/rubrics.md")
    start: str | None = _setting(None, "a bundle that all trials start from, see docs/ship.md; unset: the task's own")
    study: str | None = _setting(None, "its name; unset: TASK-MODEL-sSEED", pattern=r"^\w[\w.-]*$")
    seed: int = _setting(0, "of everything random", ge=0)
    trials: int = _setting(4, "the first schedules, then searched ones", ge=1)
    schedules: tuple[str, ...] = _setting(
        ("p", "w", "p,w", "w,p", "p,w,p", "w,p,w", ADAPTIVE), "the first trials, in this order"
    )
    adaptive_rounds: int = _setting(8, "at most so many rounds of the adaptive schedule", ge=2)
    adaptive_slices: int = _setting(4, "into so many parts it cuts weights.updates, one for each weight round", ge=1)
    max_rounds: int = _setting(3, "of a searched schedule", ge=1, le=6)
    search: Literal["narrow", "wide"] | dict[str, tuple[float, float] | tuple[str, ...]] = _setting(
        "narrow",
        "narrow: learning rate, updates, demos, and split with trial_rollouts; wide: also group size, temperature, "
        "beta, loss, and the rank of an adapter; or setting: [low, high], setting: [words]",
    )
    trial_rollouts: int | None = _setting(
        None, "rollouts of the levers in each trial, whatever its schedule; unset: as updates and candidates say", ge=1
    )
    split: float = _setting(0.25, "the prompt lever's part of trial_rollouts where both are pulled", gt=0, lt=1)
    objective: Literal["score", "cost"] = _setting(
        "score", "of a trial: the dev score at its end, or the cost until dev reaches the task's target"
    )
    axis: Literal["flops", "rollouts", "tokens", "seconds", "dollars"] = _setting(
        "flops", "what objective=cost counts, and the report's cheapest ways and front"
    )
    dollars_per_hour: float = _setting(0.0, "price of the machine, for the ledger, caps in dollars and reports", ge=0)
    elsewhere: tuple[str, ...] | None = _setting(
        None,
        "tasks whose dev is scored under the trained weights, such as [lookup, gsm8k=rows.jsonl]; unset: the other "
        "bundled tasks, for a bundled one",
    )
    sampler: Literal["gp", "tpe", "random"] = _setting("gp", "Optuna's sampler of searched trials")
    prune: bool = _setting(False, "stop searched trials that lag; never the first schedules")
    sample_rollouts: int = _setting(8, "kept of each evaluation to be looked at, of the same examples; 0 = none", ge=0)
    budget: dict[str, float] = Field(default_factory=dict, description="caps on the whole study")
    round_budget: dict[str, float] = Field(default_factory=dict, description="caps on each round")
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    weights: WeightSettings = Field(default_factory=WeightSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    remote: RemoteSettings = Field(default_factory=RemoteSettings)
    proposer: ProposerSettings = Field(default_factory=ProposerSettings)
    guard: GuardSettings = Field(default_factory=GuardSettings)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)

    @field_validator("schedules")
    @classmethod
    def _schedules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_schedule, value))

    @field_validator("search", mode="before")
    @classmethod
    def _search(cls, value: Any) -> Any:
        if not isinstance(value, dict) and value not in ("narrow", "wide"):
            raise ValueError(
                f"search: {value!r}; accepted: narrow, wide, or settings as {{weights.loss: [dapo, grpo]}}"
            )
        return value

    @field_validator("budget", "round_budget")
    @classmethod
    def _caps(cls, value: dict[str, float]) -> dict[str, float]:
        check_caps(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _what_an_api_can(cls, data: Any) -> Any:
        """Of a model behind an API the weight lever is left out, and its FLOPs are not known."""
        if not isinstance(data, dict) or not str(data.get("model", "")).startswith(API):
            return data
        given = data.get("schedules", cls.model_fields["schedules"].default)
        kept = [s for s in given if isinstance(s, str) and s != ADAPTIVE and "w" not in s]
        if not kept:
            raise ValueError(
                f"schedules: {list(given)} all pull the weight lever; {UNTRAINABLE}; accepted: p by commas"
            )
        if data.get("axis") == "flops":
            raise ValueError("axis: flops of an API model are not known; accepted: rollouts, tokens, seconds, dollars")
        return {"axis": "tokens", **data, "schedules": kept}

    @model_validator(mode="after")
    def _cost_can_be_counted(self) -> SweepConfig:
        if self.objective == "cost" and self.prune:
            raise ValueError("prune: trials are compared by their scores along the way; accepted with objective score")
        if self.axis == "dollars" and self.trainable and not self.dollars_per_hour:
            raise ValueError("axis=dollars needs a price: set dollars_per_hour above 0")
        return self

    @model_validator(mode="after")
    def _engine_can_train(self) -> SweepConfig:
        self.engine.check_peft(self.weights.peft)
        self.training.check(self.engine)
        if self.engine.quantization != "none" and self.weights.peft == "none":
            raise ValueError(
                f"engine.quantization={self.engine.quantization} holds a base that cannot be trained, and weights.peft="
                "none trains all weights; accepted with it: weights.peft lora, dora or auto"
            )
        return self

    @property
    def trainable(self) -> bool:
        """Whether the policy's weights are at hand; those behind an API are not."""
        return not self.model.startswith(API)

    @property
    def resumable(self) -> frozenset[str]:
        """What another run of this study may change; a guard that stops trials decides what they are."""
        return RESUMABLE if self.guard.on_hacking == "stop" else RESUMABLE | {"guard"}

    @property
    def study_name(self) -> str:
        """The given name, or one made of task, rubric, model and seed."""
        rubric = [_slug(self.rubric).rpartition(".")[0] or _slug(self.rubric)] if self.rubric else []
        start = [f"from-{_slug(self.start)}"] if self.start else []
        return self.study or "-".join([_slug(self.task), *rubric, *start, _slug(self.model), f"s{self.seed}"])

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that ``load_config`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def several(configs: Sequence[SweepConfig], seeds: int) -> list[SweepConfig]:
    """A study of each configuration with each of so many training seeds, seed by seed; a given name gets task and seed.

    One configuration and one seed stay as they are.
    """
    if len(configs) * seeds == 1:
        return list(configs)
    made = []
    for seed in range(seeds):
        for config in configs:
            task = f"-{_slug(config.task)}" if len(configs) > 1 else ""
            name = None if config.study is None else f"{config.study}{task}-s{config.seed + seed}"
            made.append(config.model_copy(update={"seed": config.seed + seed, "study": name}))
    return made


# What another run of the same study may change: how far it goes, what is looked at and kept, not what it is.
RESUMABLE = frozenset(
    {"trials", "budget", "study", "dollars_per_hour", "elsewhere", "sample_rollouts", "remote", "training"}
) | {
    *(f"{asked}.{name}" for asked in ("proposer", "judge") for name in RemoteSettings.model_fields),
    *(f"engine.{name}" for name in EngineSettings.model_fields if name.startswith("vllm_")),
}


def check_caps(caps: Mapping[str, float]) -> None:
    """Raises UsageError for an unknown key or a cap that is not a finite number above 0."""
    for key, value in caps.items():
        if key not in CAPS:
            raise UsageError(f"budget: unknown key {key!r}; accepted: {', '.join(CAPS)}")
        if not 0 < value < math.inf:
            raise UsageError(f"budget: {key}={value:g}; accepted: a finite number above 0")


def _slug(text: str) -> str:
    if text.startswith(API):  # by its name, whatever the address
        text = re.split(r"@(?=https?://)", text.removeprefix(API))[0]
    stem = text.removesuffix("/").rsplit("/", 1)[-1].replace(".py:", "-")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip("-.") or "study"
