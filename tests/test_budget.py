"""The ledger: nothing starts beyond a cap, slices count against their parent."""

from __future__ import annotations

import sys
import threading

import pytest

from colever.errors import BudgetExhausted, UsageError
from colever.optimizers.budget import Budget
from colever.types import Cost


def test_a_batch_is_refused_before_it_would_pass_the_cap() -> None:
    budget = Budget({"rollouts": 100})
    budget.reserve(rollouts=60)
    budget.charge(Cost(rollouts=60))
    budget.reserve(rollouts=40)
    with pytest.raises(BudgetExhausted, match="rollouts=100 is reached: 60 spent, the next batch needs 41"):
        budget.reserve(rollouts=41)


def test_what_cannot_be_known_before_is_passed_by_the_batch_in_flight_at_most() -> None:
    budget = Budget({"completion_tokens": 10})
    budget.reserve(rollouts=5)
    budget.charge(Cost(rollouts=5, completion_tokens=25))
    with pytest.raises(BudgetExhausted, match="completion_tokens"):
        budget.reserve(rollouts=1)


def test_a_slice_has_its_own_ledger_and_charges_its_parent() -> None:
    whole = Budget({"rollouts": 100})
    part = whole.slice({"rollouts": 30})
    part.charge(Cost(rollouts=30))
    assert (part.spent.rollouts, whole.spent.rollouts) == (30, 30)
    with pytest.raises(BudgetExhausted):
        part.reserve(rollouts=1)
    whole.charge(Cost(rollouts=60))
    with pytest.raises(BudgetExhausted):
        whole.slice().reserve(rollouts=11)


@pytest.mark.parametrize("caps", [{"rollouts": -1}, {"rollouts": 0}, {"flops": float("nan")}, {"euros": 3}])
def test_bad_caps_are_named(caps: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(caps))):
        Budget(caps)


def test_what_threads_book_at_once_is_all_there() -> None:
    budget, often = Budget(), sys.getswitchinterval()
    threads = [threading.Thread(target=lambda: [budget.charge(Cost(rollouts=1)) for _ in range(500)]) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(often)
    assert budget.spent.rollouts == 4000
