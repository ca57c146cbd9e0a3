"""The loop: pull one lever after the other, keep what is better on dev, compute no round twice.

Knows levers, the store and the one acceptance rule; knows nothing of how a lever works or how schedules are chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colever.errors import ColeverError, LeverError
from colever.optimizers.adaptive import Order, fixed
from colever.optimizers.budget import Budget
from colever.optimizers.guard import Refuse
from colever.optimizers.lever import Lever, NullProgress, Progress, Staged
from colever.types import Candidate, Evaluation, LeverName, RoundRecord

if TYPE_CHECKING:
    from colever.optimizers.evaluate import Evaluator
    from colever.optimizers.store import RoundStore

# (index, record, reused) → go on with the schedule?
OnRound = Callable[[int, RoundRecord, bool], bool]


def alternate(
    candidate: Candidate,
    schedule: Sequence[LeverName] | Order,
    levers: Mapping[LeverName, Lever],
    evaluator: Evaluator,
    store: RoundStore,
    *,
    budget: Budget,
    round_caps: Mapping[str, float] | None = None,
    refuse: Refuse = lambda before, record: record,
    on_round: OnRound = lambda index, record, reused: True,
    progress: Progress | None = None,
) -> list[RoundRecord]:
    """Pull ``schedule``'s levers from ``candidate``, or those that it names as it goes; the rounds, each stored.

    A child is kept if its dev mean is higher than its parent's. Gold is not read, but for ``refuse``: of a study whose
    guard may stop a trial (``guard.on_hacking=stop``) it does not keep a child that hacks the rubric. A round is a pure
    function of its key, so one that is stored is read and not run; ``refuse`` changes what this trial makes of it, not
    what is stored. Raises LeverError for a pull that failed and BudgetExhausted for one cut short by a cap: neither is
    stored.
    """
    progress = progress or NullProgress()
    before = evaluator(candidate)
    evaluator = replace(evaluator, base=before)
    rounds: list[RoundRecord] = []
    following = schedule if callable(schedule) else fixed(schedule)
    of = "" if callable(schedule) else f" of {len(schedule)}"
    while (name := following(rounds)) is not None:
        index, lever = len(rounds), levers[name]
        seed = derive_seed(evaluator.seed, index)
        key = evaluator.grounds.key(
            "round", candidate.digest, lever.name, lever.settings.model_dump(mode="json"), dict(round_caps or {}), seed
        )
        told = Staged(progress, f"round {index + 1}{of}, {name}")
        with store.lock(key, lambda: told.update(0, 1, "another process runs it")):  # noqa: B023 - called at once
            record = store.get(key)
            reused = record is not None
            if record is None:
                ledger = budget.slice(round_caps)
                record = store.put(pull(key, lever, candidate, before, evaluator, store, ledger, seed, told))
        record = refuse(rounds, record)
        rounds.append(record)
        if not on_round(index, record, reused):
            break
        candidate, before = record.kept, record.dev
    return rounds


def pull(
    key: str,
    lever: Lever,
    candidate: Candidate,
    before: Evaluation,
    evaluator: Evaluator,
    store: RoundStore,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> RoundRecord:
    """One round: the lever's child, scored on dev. Raises LeverError, with the lever's name, for a pull that failed."""
    workdir = store.workdir(key)
    workdir.mkdir(parents=True, exist_ok=True)
    seen = replace(evaluator.task, gold=None, dev=(), test=(), watched={})  # what a lever may see
    try:
        made = lever.improve(candidate, seen, evaluator.engine, budget, seed, workdir, progress)
    except ColeverError:
        raise
    except Exception as error:
        raise LeverError(f"the {lever.name} lever failed: {type(error).__name__}: {error}") from error
    same = made.candidate.digest == candidate.digest
    after = before if same else evaluator(made.candidate, budget=budget, on_done=_dev_progress(progress, evaluator))
    return RoundRecord(
        key=key,
        lever=lever.name,
        settings=lever.settings.model_dump(mode="json"),
        seed=seed,
        parent=candidate,
        child=made.candidate,
        before=before,
        after=after,
        accepted=after.score > before.score,
        cost=budget.spent,
        metrics=made.metrics,
        notes=made.notes,
    )


def derive_seed(study_seed: int, index: int) -> int:
    """A round's seed, from its place and never from counts of trials or arrival order."""
    return int.from_bytes(hashlib.sha256(f"round {study_seed} {index}".encode()).digest()[:4], "big") >> 1


def _dev_progress(progress: Progress, evaluator: Evaluator) -> Callable[[int], None]:
    total = len(evaluator.task.dev)
    return lambda done: progress.update(done, total, "dev")
