"""The records that cross a folder: frozen, without behaviour beyond their own arithmetic and JSON.

This file knows nothing of models, tasks or levers; behaviour lives in the folder that owns it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LeverName = Literal["prompt", "weights"]
SplitName = Literal["train", "dev", "test"]
Failure = Literal["policy", "infrastructure"]


def digest_of(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of ``value`` as canonical JSON; raises TypeError if it is not JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- what is optimized ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """A reference to weights on disk: the model's own (``base``), a LoRA adapter, or a full set.

    ``path`` is a folder with ``adapter_model.safetensors`` (lora), one subfolder with it per predictor and an index of
    them in ``adapters.json`` (lora as well, see ``engines/adapters.py``), or ``model.safetensors`` (full);
    ``digest`` is of the file's content, so that two equal sets are the same candidate wherever they lie.
    """

    kind: Literal["base", "lora", "full"] = "base"
    path: str | None = None
    digest: str = "base"


@dataclass(frozen=True)
class PredictorPrompt:
    """One predictor's instruction and demos; a demo maps field names to JSON values.

    ``nearest`` k > 0: of the demos each call shows the k whose inputs are most like its own; 0: all of them.
    """

    instructions: str
    demos: tuple[Mapping[str, Any], ...] = ()
    nearest: int = 0

    def to_json(self) -> dict[str, Any]:
        shown = {"nearest": self.nearest} if self.nearest else {}
        return {"instructions": self.instructions, "demos": [dict(d) for d in self.demos], **shown}


@dataclass(frozen=True)
class Candidate:
    """Prompts (by predictor name) and a weights reference: the thing that both levers optimize."""

    prompts: Mapping[str, PredictorPrompt]
    weights: Weights = field(default_factory=Weights)

    def to_json(self) -> dict[str, Any]:
        return {
            "prompts": {name: p.to_json() for name, p in self.prompts.items()},
            "weights": dataclasses.asdict(self.weights),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        prompts = {
            name: PredictorPrompt(p["instructions"], tuple(p["demos"]), p.get("nearest", 0))
            for name, p in data["prompts"].items()
        }
        return cls(prompts, Weights(**data["weights"]))

    @property
    def digest(self) -> str:
        """Of prompts and weights content; the folder in which the weights lie does not count."""
        data = self.to_json()
        data["weights"] = self.weights.digest
        return digest_of(data)


# --- what the model did --------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """One completion with exactly the tokens that went in and came out.

    ``logprobs`` has one natural-log probability per completion id, under the sampling distribution
    (temperature applied; at temperature 0 those of temperature 1). ``version`` names the weights.
    A model behind an API tells no tokens: its ids are empty, ``prompt`` is what was asked in words, and ``counted`` are
    the numbers of prompt and completion tokens that it reports, None where it reports none.
    """

    text: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    version: str
    prompt: str = ""
    counted: tuple[int, int] | None = None

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Tokens of prompt and completion, as an API counts them where it is one; None where nobody has counted."""
        return (len(self.prompt_ids), len(self.completion_ids)) if self.prompt_ids else self.counted


@dataclass(frozen=True)
class Step:
    """One predictor call: ``occurrence`` counts the earlier calls of the same predictor in this rollout."""

    predictor: str
    occurrence: int
    completion: Completion
    failed: bool = False  # the completion could not be parsed into the predictor's output fields
    inputs: Mapping[str, Any] = field(default_factory=dict)  # the call's fields, as JSON values
    outputs: Mapping[str, Any] = field(default_factory=dict)  # {} where it failed
    short_ids: tuple[int, ...] = ()  # the call's prompt under other prompts, where a run was asked to keep it
    drifted: bool = False  # an earlier answer of the rollout is in the prompt in other tokens than it was sampled in


@dataclass(frozen=True)
class Score:
    """What the rubric gives one rollout; every number is in [0, 1]. ``gold`` is never read by a lever."""

    total: float
    by_criterion: Mapping[str, float]
    feedback: str = ""
    gold: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)  # by criterion, where one said why
    votes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by criterion, where several were asked


@dataclass(frozen=True)
class Rollout:
    """One run of the program on one example under one candidate.

    Exactly one of three outcomes: ``failure is None`` and a score; ``failure == "policy"`` and the lowest
    score; ``failure == "infrastructure"`` and ``score is None``.
    """

    example_id: str
    sample: int  # 0 … G-1 within the group
    steps: tuple[Step, ...]
    score: Score | None
    outputs: Mapping[str, Any]  # the prediction's fields, as JSON values ({} if the program failed)
    failure: Failure | None = None
    reason: str = ""
    version: str = ""


# --- what it cost --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """One ledger for both levers. FLOPs are counted, not guessed; seconds are wall time.

    What a proposer (the model that writes prompts) reads and writes is counted apart from the policy's tokens; where
    the policy itself proposes, its tokens are in both. So is what the task's own models do: those that judge answers,
    and those that its program asks.
    """

    rollouts: int = 0
    prompt_tokens: int = 0  # prompt tokens computed by the sampler (a shared prefix counts once)
    completion_tokens: int = 0
    trained_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    dollars: float = 0.0
    proposer_calls: int = 0
    proposer_tokens: int = 0  # read and written by the model that proposes prompts
    judge_calls: int = 0
    judge_tokens: int = 0  # read and written by models that judge, and by others that the task asks

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens of the sampler, and trained tokens."""
        return self.prompt_tokens + self.completion_tokens + self.trained_tokens

    def priced(self, dollars_per_hour: float) -> Cost:
        """With the machine's time in ``dollars``."""
        return dataclasses.replace(self, dollars=self.dollars + self.seconds * dollars_per_hour / 3600)


# --- what was measured ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A candidate on one split, one fixed decoding: lists are in the split's own order of examples.

    An example whose rollout was an infrastructure failure holds None in ``scores`` and ``golds``.
    """

    split: str
    example_ids: tuple[str, ...]
    scores: tuple[float | None, ...]
    golds: tuple[float | None, ...]
    by_criterion: Mapping[str, float]  # means over scored examples, watched criteria included
    completion_tokens: Mapping[str, float]  # mean length by predictor
    policy_failures: int = 0
    infrastructure_failures: int = 0
    cost: Cost = field(default_factory=Cost)
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)  # mean full prompt of a call, by predictor
    calls: Mapping[str, float] = field(default_factory=dict)  # mean number in a rollout, by predictor
    agreement: Mapping[str, float] = field(default_factory=dict)  # of a criterion's votes: Krippendorff's alpha
    values: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)  # by criterion, of each example

    @property
    def score(self) -> float:
        """Mean rubric score over the scored examples."""
        return _mean(self.scores)

    @property
    def gold(self) -> float | None:
        """Mean gold over the scored examples, or None where the task has no gold."""
        return _mean(self.golds) if any(g is not None for g in self.golds) else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        fields = dict(data)
        for name in ("example_ids", "scores", "golds"):
            fields[name] = tuple(fields[name])
        fields["cost"] = Cost(**fields["cost"])
        fields["values"] = {name: tuple(values) for name, values in data.get("values", {}).items()}
        return cls(**fields)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")


@dataclass(frozen=True)
class RoundRecord:
    """One pull of one lever, as it is stored under ``key`` and never computed again."""

    key: str
    lever: LeverName
    settings: Mapping[str, Any]
    seed: int
    parent: Candidate
    child: Candidate  # what the lever made, accepted or not
    before: Evaluation  # dev
    after: Evaluation  # dev
    accepted: bool
    cost: Cost  # of the pull and its dev evaluation
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # curves: (step, value)
    notes: Mapping[str, Any] = field(default_factory=dict)  # what the lever says of the pull, as JSON

    @property
    def kept(self) -> Candidate:
        """The candidate that the next round starts from."""
        return self.child if self.accepted else self.parent

    @property
    def dev(self) -> Evaluation:
        """Of the candidate that is kept."""
        return self.after if self.accepted else self.before

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data.update(
            parent=self.parent.to_json(),
            child=self.child.to_json(),
            before=self.before.to_json(),
            after=self.after.to_json(),
            cost=dataclasses.asdict(self.cost),
            settings=dict(self.settings),
            metrics={name: [list(point) for point in curve] for name, curve in self.metrics.items()},
            notes=dict(self.notes),
        )
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundRecord:
        fields = dict(data)
        fields.update(
            parent=Candidate.from_json(data["parent"]),
            child=Candidate.from_json(data["child"]),
            before=Evaluation.from_json(data["before"]),
            after=Evaluation.from_json(data["after"]),
            cost=Cost(**data["cost"]),
            metrics={name: [(int(s), float(v)) for s, v in curve] for name, curve in data["metrics"].items()},
        )
        return cls(**fields)


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study: a schedule with its settings, and the keys of its rounds in order."""

    number: int
    schedule: str  # such as "p,w"
    settings: Mapping[str, Any]
    state: Literal["complete", "pruned", "failed"]
    rounds: tuple[RoundRecord, ...]
    dev: Evaluation | None  # of the trial's last kept candidate
    candidate: Candidate
    cost: Cost  # every round charged in full, shared or not


def read_json(path: Path) -> Any:
    """The JSON in ``path``; raises ValueError that names the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
