"""A candidate on a split: one rollout per example at the task's own decoding, scored by the rubric.

Knows candidates, tasks and the engine; accepts nothing and chooses nothing.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from colever.engines.tally import tallied
from colever.errors import LeverError, StoreError
from colever.optimizers.agreement import alpha
from colever.optimizers.gained import gained
from colever.optimizers.sample import sampled
from colever.samples import SampledRollout
from colever.types import Candidate, Cost, Evaluation, PredictorPrompt, Rollout, Score, Weights, digest_of

if TYPE_CHECKING:
    import dspy

    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.budget import Budget
    from colever.optimizers.store import EvaluationStore
    from colever.tasks.task import Task

PACKAGES = ("colever", "torch", "transformers", "trl", "peft", "accelerate", "dspy")


def versions() -> dict[str, str]:
    """Of Python and the packages that a result depends on."""
    return {"python": ".".join(map(str, sys.version_info[:2]))} | {name: version(name) for name in PACKAGES}


class Meter:
    """What a stretch of work cost; read ``cost`` after it."""

    cost = Cost()


@contextmanager
def metered(
    engine: TransformersEngine, rollouts: int, budget: Budget | None = None, *, later: bool = False
) -> Iterator[Meter]:
    """Reserve ``rollouts``, run the block, charge what the engine's meter says it cost, and what its judges did.

    A block that raises is charged the same, its rollouts too if the engine was asked for anything. ``later``: the
    caller has reserved, and charges a block that does not raise. Judges are reserved call by call, within the block.
    """
    if budget is not None and not later:
        budget.reserve(rollouts=rollouts)
    meter, before, started = Meter(), engine.meter, time.monotonic()
    done = False
    with tallied((lambda calls: budget.reserve(judge_calls=calls)) if budget else (lambda calls: None)) as tally:
        try:
            yield meter
            done = True
        finally:
            spent = engine.meter - before
            rollouts = rollouts if done or engine.meter != before else 0
            meter.cost = replace(spent, rollouts=rollouts, seconds=time.monotonic() - started) + tally.cost
            if budget is not None and not (later and done):
                budget.charge(meter.cost)


def evaluate(
    candidate: Candidate,
    task: Task,
    engine: TransformersEngine,
    split: str = "dev",
    *,
    seed: int = 0,
    budget: Budget | None = None,
    limit: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Evaluation:
    """One rollout per example of ``split`` (its first ``limit``), at the task's temperature.

    Raises BudgetExhausted before the batch where it would pass a cap, TaskError where scoring fails,
    InfrastructureError where too many rollouts got no score.
    """
    return measure(candidate, task, engine, split, seed=seed, budget=budget, limit=limit, on_done=on_done)[0]


def measure(
    candidate: Candidate,
    task: Task,
    engine: TransformersEngine,
    split: str,
    *,
    seed: int,
    budget: Budget | None = None,
    limit: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> tuple[Evaluation, list[Rollout]]:
    """See ``evaluate``; with the rollouts that it is of."""
    examples = task.examples(split)[:limit]
    with metered(engine, len(examples), budget) as meter:
        rollouts = run_candidate(candidate, task, engine, examples, split=split, seed=seed, on_done=on_done)
    return summarize(rollouts, split, meter.cost), rollouts


def run_candidate(
    candidate: Candidate,
    task: Task,
    engine: TransformersEngine,
    examples: Sequence[tuple[str, dspy.Example]],
    *,
    split: str,
    seed: int,
    score: Callable[..., Score] | None = None,
    program: Callable[[], dspy.Module] | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """The task's program under the candidate's prompts and weights, one rollout per example.

    ``score`` and ``program`` stand in for the task's own where a caller looks on.
    """
    from colever.engines.adapters import check_predictors
    from colever.engines.lm import engine_lm
    from colever.pipelines.prompts import apply_prompts
    from colever.pipelines.rollout import run_rollouts

    ready = apply_prompts((program or task.program)(), candidate.prompts)
    check_predictors(candidate.weights, [name for name, _ in ready.named_predictors()])
    engine.load(candidate.weights)
    return run_rollouts(
        ready,
        examples,
        lm=engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens),
        score=score or task.score,
        fail=task.fail,
        temperature=task.temperature,
        max_tokens=task.max_tokens,
        seed=seed,
        split=split,
        on_done=on_done,
    )


def run_together(
    weights: Weights,
    task: Task,
    engine: TransformersEngine,
    prompts: Mapping[str, Mapping[str, PredictorPrompt]],
    asked: Sequence[tuple[str, str, dspy.Example, int, float]],
    *,
    seed: int,
    on_done: Callable[[int], None] | None = None,
    spared: int = 0,
) -> list[Rollout]:
    """Rollouts on train under several sets of prompts as one batch.

    ``asked``: (which of ``prompts``, example's id, example, sample, temperature) of each. What ``on_done`` raises ends
    the batch. ``spared``: see ``run_attempts``.
    """
    from colever.engines.adapters import check_predictors
    from colever.engines.lm import engine_lm
    from colever.pipelines.prompts import apply_prompts
    from colever.pipelines.rollout import Attempt, run_attempts

    ready = {name: apply_prompts(task.program(), given) for name, given in prompts.items()}
    for program in list(ready.values())[:1]:
        check_predictors(weights, [name for name, _ in program.named_predictors()])
    engine.load(weights)
    return run_attempts(
        [Attempt(ready[name], example_id, example, n, heat) for name, example_id, example, n, heat in asked],
        lm=engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens),
        score=task.score,
        fail=task.fail,
        max_tokens=task.max_tokens,
        seed=seed,
        split="train",
        on_done=on_done,
        spared=spared,
    )


def summarize(rollouts: Sequence[Rollout], split: str, cost: Cost) -> Evaluation:
    """One rollout per example → its evaluation. Raises LeverError if there is no rollout at all."""
    if not rollouts:
        raise LeverError(f"split {split!r}: no example to evaluate")
    scored = [r.score for r in rollouts if r.score is not None]
    names = list(scored[0].by_criterion) if scored else []
    read, written = dict[str, list[int]](), dict[str, list[int]]()
    for step in (step for rollout in rollouts for step in rollout.steps):
        if step.completion.lengths is not None:
            read.setdefault(step.predictor, []).append(step.completion.lengths[0])
            written.setdefault(step.predictor, []).append(step.completion.lengths[1])
    whole = [r for r in rollouts if r.failure != "infrastructure"]
    made = Counter(step.predictor for rollout in whole for step in rollout.steps)
    return Evaluation(
        split=split,
        example_ids=tuple(r.example_id for r in rollouts),
        scores=tuple(None if r.score is None else r.score.total for r in rollouts),
        golds=tuple(None if r.score is None else r.score.gold for r in rollouts),
        by_criterion={name: sum(s.by_criterion[name] for s in scored) / len(scored) for name in names},
        completion_tokens={name: sum(n) / len(n) for name, n in written.items()},
        policy_failures=sum(r.failure == "policy" for r in rollouts),
        infrastructure_failures=sum(r.failure == "infrastructure" for r in rollouts),
        cost=cost,
        prompt_tokens={name: sum(n) / len(n) for name, n in read.items() if any(n)},  # a remote model may not say
        calls={name: count / len(whole) for name, count in made.items()},
        agreement=_agreement(scored),
        values={n: tuple(None if r.score is None else r.score.by_criterion[n] for r in rollouts) for n in names},
    )


def _agreement(scores: Sequence[Score]) -> dict[str, float]:
    """By criterion whose votes are several: how far they agree."""
    names = dict.fromkeys(name for score in scores for name in score.votes)
    found = {name: alpha([score.votes[name] for score in scores if name in score.votes]) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Grounds:
    """What every stored result of a study depends on besides its own inputs."""

    task: str  # digest
    engine: str  # digest
    versions: Mapping[str, str]

    def key(self, *parts: Any) -> str:
        """The digest under which a result with these further inputs is stored."""
        return digest_of([*parts, self.task, self.engine, dict(self.versions)])

    def evaluation_key(self, candidate: Candidate, split: str, seed: int) -> str:
        """Where a candidate's evaluation on a split is stored; the split is part of it."""
        return self.key("evaluation", candidate.digest, split, seed)


@dataclass(frozen=True)
class Evaluator:
    """Evaluations of one study's task on one engine, each computed once and stored."""

    task: Task
    engine: TransformersEngine
    grounds: Grounds
    store: EvaluationStore
    seed: int
    kept: int = 0  # rollouts stored with an evaluation, to be looked at
    base: Evaluation | None = None  # of the trial at hand, for what is kept of those that gained since

    @classmethod
    def of(cls, task: Task, engine: TransformersEngine, store: EvaluationStore, seed: int, kept: int = 0) -> Evaluator:
        return cls(task, engine, Grounds(task.digest(), engine.digest, versions()), store, seed, kept)

    def __call__(
        self,
        candidate: Candidate,
        split: str = "dev",
        *,
        budget: Budget | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> Evaluation:
        """Stored, or run and stored; a stored one is charged to the budget like a run one."""
        key = self.grounds.evaluation_key(candidate, split, self.seed)
        with self.store.lock(key):
            found = self.store.get(key)
            if found is not None:
                if budget is not None:
                    budget.reserve(rollouts=found.cost.rollouts)
                    budget.charge(found.cost)
                return found
            result, rollouts = measure(
                candidate, self.task, self.engine, split, seed=self.seed, budget=budget, on_done=on_done
            )
            self.store.put(key, result, *self._sampled(result, rollouts))
            return result

    def rollouts(self, candidate: Candidate, split: str = "dev") -> tuple[SampledRollout, ...]:
        """The rollouts kept of a stored evaluation; none where there are none, or none that can be read."""
        try:
            return self.store.rollouts(self.grounds.evaluation_key(candidate, split, self.seed))
        except StoreError:
            return ()  # a round stands without them

    def _sampled(
        self, result: Evaluation, rollouts: Sequence[Rollout]
    ) -> tuple[Sequence[SampledRollout], Sequence[SampledRollout]]:
        """The sample, and what is not in it of those whose score rose most since base while their gold did not."""
        examples = self.task.examples(result.split)
        sample = sampled(rollouts, examples, self.kept, self._text)
        if self.base is None or self.base.split != result.split:
            return sample, ()
        most = {*list(gained(self.base, result))[: self.kept]} - {r.example_id for r in sample}
        return sample, sampled(rollouts, [row for row in examples if row[0] in most], len(most), self._text)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.engine.tokenizer.decode(tokens))
