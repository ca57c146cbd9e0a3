"""A study's ledger, as one worker keeps it: each round once, what pulls lost, and what other workers spent.

Knows costs, trials and the workers; runs nothing. Trials that ended elsewhere, or in an earlier call, are charged when
they are first seen; what is in flight elsewhere counts against the caps, but is on the other worker's ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from colever.config import SweepConfig
from colever.optimizers.budget import Budget
from colever.optimizers.store import RoundStore
from colever.optimizers.workers import FLYING, Workers
from colever.types import Cost, RoundRecord


class Ledger:
    """``budget`` is what levers reserve from and charge to."""

    def __init__(self, config: SweepConfig, workers: Workers) -> None:
        self._workers = workers
        self.budget = Budget(config.budget, shared=self, dollars_per_hour=config.dollars_per_hour)
        self._charged: dict[str, Cost] = {}  # rounds by key, and what failed pulls lost
        self._heard: dict[str, Cost] = {}  # the same of other workers, those that are gone included
        self._open = False  # until base is booked
        self._known: set[int] = set()  # ended and failed trials
        self._mark = Cost()  # what was spent when the last round, or the trial before, had ended

    def __contains__(self, key: str) -> bool:
        """Whether the round is on it."""
        return key in self._charged

    def open(self) -> None:
        """Base is booked, as each worker has it on its own: from now on workers count what the others spend."""
        self._open = True
        self.mark()

    def mark(self) -> None:
        """A trial begins: what is spent from now on is in flight until its round has ended."""
        self._mark, self.budget.reserved = self.budget.spent, 0

    def charge(self, name: str, cost: Cost) -> None:
        """A cost that was paid elsewhere or before, once for each name."""
        if name not in self._charged:
            self._charged[name] = cost
            self._mark = self._mark + cost
            self.budget.charge(cost)

    def end_round(self, record: RoundRecord, stored: bool) -> bool:
        """Book a round of the trial at hand; whether it was on the ledger already.

        One that is read from the store costs what it cost: raises BudgetExhausted where that passes a cap. What another
        worker has paid for counts already.
        """
        seen = record.key in self
        if stored and not seen:
            if record.key not in self._paid_elsewhere():
                self.budget.reserve(rollouts=record.cost.rollouts)
            self.charge(record.key, record.cost)
        self._charged[record.key] = record.cost
        self.mark()
        self.tell()
        return seen

    def end_trial(self, number: int) -> None:
        """A trial of this worker has ended."""
        self._known.add(number)

    def fail_trial(self, number: int) -> Cost:
        """A trial of this worker has failed: what its last pull spent."""
        lost = self.budget.spent - self._mark
        self._charged[f"lost {number}"] = lost
        self._known.add(number)
        self.mark()
        return lost

    def catch_up(self, trials: Iterable[FrozenTrial], rounds: RoundStore) -> None:
        """Charge those that ended or failed elsewhere since the last look."""
        for trial in trials:
            if trial.number in self._known:
                continue
            self._known.add(trial.number)
            if trial.state is TrialState.FAIL:
                self.charge(f"lost {trial.number}", Cost(**trial.user_attrs["lost"]))
            for key in trial.user_attrs["rounds"]:
                if key not in self and (record := rounds.get(key)) is not None:
                    self.charge(key, record.cost)

    # --- what workers tell each other (``budget.Shared``) -----------------------------------------

    def elsewhere(self) -> Cost:
        """What other workers spent that is not on this ledger."""
        paid = self._paid_elsewhere() if self._open else {}
        return sum((cost for name, cost in paid.items() if name not in self._charged), Cost())

    def tell(self) -> None:
        """The other workers, what is on this ledger; nobody asks where there are no caps."""
        if self.budget.caps and self._open:
            flying = self.budget.spent - self._mark
            flying = replace(flying, rollouts=flying.rollouts + self.budget.reserved)
            self._workers.publish({**self._charged, FLYING: flying})

    def reserving(self) -> AbstractContextManager[Any]:
        """One worker at a time looks and reserves; nobody waits where there are no others to count."""
        return self._workers.reserving() if self._open else nullcontext()

    def _paid_elsewhere(self) -> dict[str, Cost]:
        """By what for. A worker that is gone has spent what it had booked; what it had in flight is counted anew."""
        now = self._workers.published() if self.budget.caps else {}
        self._heard |= {name: cost for name, cost in now.items() if not name.startswith(FLYING)}
        return {**now, **self._heard}
