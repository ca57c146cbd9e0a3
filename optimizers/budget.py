"""One ledger for both levers: what was spent, and the caps that no batch may be started beyond.

Knows costs and caps; knows nothing of who spends.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from colever.config import check_caps
from colever.errors import BudgetExhausted
from colever.types import Cost


class Shared(Protocol):
    """The ledgers of other processes that spend under the same caps."""

    def elsewhere(self) -> Cost:
        """What they have spent that is not on this ledger."""
        ...

    def tell(self) -> None:
        """This ledger has changed."""
        ...

    def reserving(self) -> AbstractContextManager[Any]:
        """Around a look at what the others have and a reservation that is told: one process at a time."""
        ...


class Budget:
    """Caps on any field of Cost; none given, none kept. A slice charges its parent too.

    With ``shared`` the caps hold for all processes together: rollouts that one has reserved count for the others; of
    what is known afterwards alone (tokens, seconds) each may have one batch in flight. The machine's time counts
    towards caps in dollars at ``dollars_per_hour``; ``spent.dollars`` is without it, so that what is stored does not
    depend on a price.
    Raises UsageError for an unknown key or a cap that is not above 0.
    """

    def __init__(
        self,
        caps: Mapping[str, float] | None = None,
        *,
        parent: Budget | None = None,
        shared: Shared | None = None,
        dollars_per_hour: float = 0.0,
    ) -> None:
        check_caps(caps or {})
        self.caps = dict(caps or {})
        self.spent = Cost()
        self.reserved = 0  # rollouts of batches that are under way
        self._parent = parent
        self._shared = shared if self.caps else None
        self._rate = dollars_per_hour
        self._booking = threading.Lock()  # a proposer's threads book beside those of rollouts

    def reserve(self, **amounts: float) -> None:
        """Ask for the next batch: raises BudgetExhausted if it would pass a cap, or a cap is already reached.

        Amounts that cannot be known before (tokens, seconds) may be left out: then the batch in flight is the most
        by which a cap is passed.
        """
        check_caps(dict.fromkeys(amounts, 1))
        with self._shared.reserving() if self._shared else nullcontext():
            self._check(amounts)
            if self._parent is not None:
                self._parent.reserve(**amounts)
            with self._booking:
                self.reserved += int(amounts.get("rollouts", 0))
            if self._shared is not None:
                self._shared.tell()

    def _check(self, amounts: Mapping[str, float]) -> None:
        all_spent = self.spent + self._shared.elsewhere() if self._shared else self.spent
        spent = dataclasses.asdict(all_spent.priced(self._rate))
        for key, cap in self.caps.items():
            wanted = amounts.get(key, 0)
            if spent[key] >= cap or spent[key] + wanted > cap:
                more = f", the next batch needs {wanted:,.0f}" if wanted else ""
                raise BudgetExhausted(f"budget: {key}={_said(cap)} is reached: {_said(spent[key])} spent{more}", self)

    def charge(self, cost: Cost) -> None:
        """Book what a batch cost."""
        with self._booking:
            self.spent = self.spent + cost
            self.reserved = max(0, self.reserved - cost.rollouts)
        if self._shared is not None:
            self._shared.tell()
        if self._parent is not None:
            self._parent.charge(cost)

    def slice(self, caps: Mapping[str, float] | None = None) -> Budget:
        """A ledger of its own, with further caps, that also counts against this one."""
        return Budget(caps, parent=self, dollars_per_hour=self._rate)


def _said(amount: float) -> str:
    """Dollars come in small parts."""
    return f"{amount:,.0f}" if amount >= 100 or amount == int(amount) else f"{amount:.3g}"
