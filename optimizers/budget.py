"""One ledger for both levers: what was spent, and the caps that no batch may be started beyond.

Knows costs and caps; knows nothing of who spends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from colever.config import check_caps
from colever.errors import BudgetExhausted
from colever.types import Cost


class Budget:
    """Caps on any field of Cost; none given, none kept. A slice charges its parent too.

    Raises UsageError for an unknown key or a cap that is not above 0.
    """

    def __init__(self, caps: Mapping[str, float] | None = None, *, parent: Budget | None = None) -> None:
        check_caps(caps or {})
        self.caps = dict(caps or {})
        self.spent = Cost()
        self._parent = parent

    def reserve(self, **amounts: float) -> None:
        """Ask for the next batch: raises BudgetExhausted if it would pass a cap, or a cap is already reached.

        Amounts that cannot be known before (tokens, seconds) may be left out: then the batch in flight is the most
        by which a cap is passed.
        """
        check_caps(dict.fromkeys(amounts, 1))
        spent = dataclasses.asdict(self.spent)
        for key, cap in self.caps.items():
            wanted = amounts.get(key, 0)
            if spent[key] >= cap or spent[key] + wanted > cap:
                more = f", the next batch needs {wanted:,.0f}" if wanted else ""
                raise BudgetExhausted(f"budget: {key}={cap:,.0f} is reached: {spent[key]:,.0f} spent{more}", self)
        if self._parent is not None:
            self._parent.reserve(**amounts)

    def charge(self, cost: Cost) -> None:
        """Book what a batch cost."""
        self.spent = self.spent + cost
        if self._parent is not None:
            self._parent.charge(cost)

    def slice(self, caps: Mapping[str, float] | None = None) -> Budget:
        """A ledger of its own, with further caps, that also counts against this one."""
        return Budget(caps, parent=self)
