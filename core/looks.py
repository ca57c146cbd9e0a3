"""What the guard against reward hacking saw, round by round. Records only: ``optimizers.guard`` judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from colever.samples import SampledRollout


@dataclass(frozen=True)
class Look:
    """One round's child beside its trial's base, on dev, paired over examples; everything in shares of the score.

    ``low`` is the false gain's lower bound, one-sided at ``level``: above ``margin`` it is an alarm.
    """

    number: int  # 1: the trial's first look
    score_gain: float
    gold_gain: float
    worth: float  # what a right answer is worth in score beside a wrong one, at base
    form: float  # gain that counts as learning the form, and not as false
    false_gain: float  # score_gain - worth * gold_gain - form
    low: float
    level: float
    margin: float
    examples: int
    criteria: Mapping[str, float] = field(default_factory=dict)  # what each brought of the gain, the most first
    exact: bool = False  # the criteria's parts add up to the gain; else they are weight × change of the mean
    gained: Mapping[str, float] = field(default_factory=dict)  # example ids: rise of the score where gold did not rise

    @property
    def alarm(self) -> bool:
        return self.low > self.margin


@dataclass(frozen=True)
class JudgedRound:
    """A kept round's look under the first trial that has it.

    ``rollouts`` of an alarm, by example: base's, None where it was not kept, and the child's.
    """

    name: str  # "2.1" is trial 2's first round
    lever: str
    score: float
    gold: float
    look: Look
    key: str = ""  # the round's
    refused: bool = False
    rollouts: Mapping[str, tuple[SampledRollout | None, SampledRollout]] = field(default_factory=dict)


@dataclass(frozen=True)
class Guarded:
    """The guard's part of a report. ``blind``: the task has no gold, so that it could not look."""

    on_hacking: str
    margin: float
    blind: bool = False
    base: tuple[float, float] | None = None  # score and gold on dev
    rounds: Sequence[JudgedRound] = ()

    @property
    def alarms(self) -> list[JudgedRound]:
        return [judged for judged in self.rounds if judged.look.alarm]
