"""What a study says in the end: cells, effects, thresholds, what can be had for which cost. Records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from colever.looks import Guarded
from colever.prompt_notes import PromptNotes
from colever.samples import SampledRollout
from colever.types import Candidate, Cost, LeverName, RoundRecord

Over = Literal["examples", "seeds and examples"]


@dataclass(frozen=True)
class Spread:
    """How a mean's values vary, as standard deviations (None: cannot be told from this many seeds and examples).

    ``over_examples`` of one seed holds the residual too: what depends on seed and example together.
    """

    seeds: int
    examples: int
    over_examples: float | None = None
    over_seeds: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``resolved`` is false where the interval holds 0 (effects only).

    ``over`` says what the interval covers: examples alone, for the one training run at hand, or training seeds too.
    """

    value: float
    low: float
    high: float
    resolved: bool = True
    over: Over = "examples"
    spread: Spread | None = None


@dataclass(frozen=True)
class Cell:
    """One candidate on test: rubric score and gold (None without gold); None everywhere if not pulled."""

    name: str  # base, prompt, weights, both, or a part's name
    score: Estimate | None
    gold: Estimate | None
    schedule: str = ""
    dev: float | None = None  # the dev score that chose it
    completion_tokens: Mapping[str, float] = field(default_factory=dict)
    by_criterion: Mapping[str, float] = field(default_factory=dict)
    examples: int | None = None  # how many examples the cell was scored on
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)  # mean of a call, by predictor
    calls: Mapping[str, float] = field(default_factory=dict)  # mean number in a rollout, by predictor

    @property
    def rollout_prompt_tokens(self) -> float:
        """Mean prompt tokens that a rollout reads, over all its calls."""
        return sum(tokens * self.calls.get(name, 0.0) for name, tokens in self.prompt_tokens.items())


@dataclass(frozen=True)
class Threshold:
    """Which lever first crossed a level on the winner's path (dev), in which round, at what cost so far."""

    at: float
    lever: LeverName | Literal["base"] | None  # None: never crossed
    round: int | None
    cost: Cost | None


@dataclass(frozen=True)
class ArmRow:
    """One trial in the report: dev and test are gold where the task has gold, else the rubric score."""

    schedule: str
    dev: float
    test: float | None
    cost: Cost
    trial: int = 0
    dev_score: float | None = None
    dev_gold: float | None = None
    curve: Sequence[tuple[Cost, float]] = ()  # (cost so far, dev) of the candidate kept: base first, then every round


@dataclass(frozen=True)
class Flips:
    """Which test examples the winner turned, of ``examples`` that both it and the base were scored on.

    Right is full marks: a value of 1, of gold where the task has gold. ``p_value`` is McNemar's exact test, two-sided.
    """

    examples: int
    gained: tuple[str, ...]  # ids, wrong under the base and right under the winner, in the split's order
    lost: tuple[str, ...]  # ids, the other way round
    p_value: float
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a few: id -> the example's fields


@dataclass(frozen=True)
class Stop:
    """The candidate that a trial kept after some of its rounds, at what these cost, each charged in full."""

    trial: int
    schedule: str  # of the rounds so far; "" is the base
    cost: Cost
    dev_score: float
    dev: float  # gold where the task has gold, else the score
    test: float | None = None  # likewise; None where it was not read


@dataclass(frozen=True)
class Level:
    """The cheapest stops at which dev first reaches a level: by prompt rounds only, weight rounds only, both."""

    at: float
    cheapest: Mapping[str, Stop]  # of base, prompt, weights, both; those that never reach it are left out


@dataclass(frozen=True)
class Elsewhere:
    """Another task's dev scores under this study's weights and the other task's own prompts, in shares.

    Gold where that task has gold. ``change`` is paired over its examples: the weights less the model's own.
    """

    task: str
    arm: str  # whose weights: weights, both
    before: float
    after: float
    change: Estimate
    examples: int


@dataclass(frozen=True)
class PromptRound:
    """One pull of the prompt lever, told once: under the first trial that has it."""

    name: str  # as `colever show` takes it: "2.1" is trial 2's first round
    record: RoundRecord
    change: Estimate | None  # of the dev score, after less before, paired over examples

    @property
    def notes(self) -> PromptNotes:
        return PromptNotes.of(self.record)


@dataclass(frozen=True)
class NamedPrompts:
    """A candidate's prompts under its round's name, with what they cost: mean prompt tokens of a call on dev."""

    study: str
    name: str  # base, winner, or TRIAL.ROUND
    candidate: Candidate
    parent: str  # the name of what it is compared with; "" for base
    prompt_tokens: Mapping[str, float]  # by predictor; {} where they were not counted
    record: RoundRecord | None = None  # of the round that made it


@dataclass(frozen=True)
class StudyReport:
    """Everything that the terminal, JSON, page, figures and MLflow show of a study; built by optimizers.attribution."""

    study: str
    task: str
    model: str
    target: float
    finished: bool  # False: dev only, the test cells are empty
    has_gold: bool
    table: Mapping[str, Cell]  # base, prompt, weights, both
    parts: Mapping[str, Cell]  # "p*,w0", "p0,w*", "p*,w*" of the winner
    effects: Mapping[str, Estimate]  # prompt, weights, interaction (and others by name)
    thresholds: Sequence[Threshold]
    arms: Sequence[ArmRow]
    path: Sequence[RoundRecord]  # the winner's rounds
    winner: str  # its schedule
    cost: Cost  # of the sweep: every distinct round once, and pulls that failed
    expected: Cost | None = None  # of the sweep, by a dry run
    reading_cost: Cost = field(default_factory=Cost)  # of reading test and watched splits at the end; under no cap
    dev_gain: float | None = None
    test_gain: float | None = None
    watched: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)  # watched split -> cell name -> cell
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()  # trials that failed in this call; the same command tries them once more
    flips: Flips | None = None  # base to winner on test
    objective: str = "score"  # what chose the winner: score, or cost to the target
    axis: str = "flops"  # what cost means in front and levels
    front: Sequence[Stop] = ()  # by rising cost, the best on dev that can be had for it
    levels: Sequence[Level] = ()  # the cheapest way of each arm to each level
    elsewhere: Sequence[Elsewhere] = ()  # other tasks under the trained weights
    rollouts: Mapping[str, tuple[SampledRollout, SampledRollout]] = field(default_factory=dict)  # base's and winner's
    prompt_rounds: Sequence[PromptRound] = ()  # each distinct one of all trials
    guard: Guarded | None = None  # what the guard against reward hacking saw; None where it was off
