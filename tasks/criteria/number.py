"""Criterion ``number``: an answer's number beside the label's, however the two are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Literal

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.fields import labels_of, read
from colever.tasks.criteria.quantity import ARITHMETIC, Mark, Quantity, quantities, unit_of, unit_table
from colever.tasks.criteria.settings import not_empty, not_negative, refuse, settle
from colever.types import Step

_NOISE = Decimal("1e-12")  # of a float's arithmetic, relative; whole numbers have none


@dataclass(frozen=True)
class Number:
    """1 where the field's number is the label's, within ``absolute`` or ``relative`` (to the label) of it.

    Without either, whole numbers must be equal and others agree to 12 digits. Read are thousands separators, currency
    signs, fractions, powers of ten, percent (``40 %`` is 0.4; with ``percent="points"`` 40). Of a text with several
    numbers ``pick`` takes the last or the first; ``only`` (the default) takes none, so that no two guesses pay.
    ``unit``: what a number without a unit is in; one with a unit is converted (SI prefixes, time, common imperial ones,
    and ``units`` such as ``"furlong = 201.168 m"``), and another dimension is wrong. Without ``unit``, units are passed
    over. A label that is a list holds several right answers; of a label's text the last number counts.

    Range: 0 or 1. Reads: the field, the label. Cost: none.
    """

    field: str
    label: str = ""
    absolute: float = 0.0
    relative: float = 0.0
    pick: Literal["only", "last", "first"] = "only"
    percent: Literal["share", "points"] = "share"
    decimal_mark: Mark = "."
    unit: str = ""
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        not_negative(self, "absolute", "relative")
        try:
            table = unit_table(self.units)
        except ValueError:
            refuse(self, "units", "lines like 'furlong = 201.168 m'")
        if self.unit and unit_of(self.unit, table) is None:
            refuse(self, "unit", "a unit such as km, min, m/s, or one that 'units' gives")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        wanted = [self._value(label, "last") for label in labels_of(example, self.label or self.field)]
        if all(w is None for w in wanted):
            name = self.label or self.field
            raise TaskError(f"the example's field {name!r} is {example[name]!r}; accepted: a number, {self._in()}")
        got = self._value(read(prediction, steps, self.field), self.pick)
        return got is not None and any(self._equal(got, w) for w in wanted if w is not None)

    def _in(self) -> str:
        return f"in {self.unit} or a unit like it" if self.unit else "or a text that ends with one"

    def _value(self, value: Any, pick: str) -> Decimal | None:
        found = quantities(value, self.decimal_mark, self.percent == "share", backwards=pick == "last")
        first, second = next(found, None), next(found, None) if pick == "only" else None
        return None if first is None or second is not None else self._converted(first)

    def _converted(self, quantity: Quantity) -> Decimal | None:
        """In base units where the criterion has a unit; None for a unit of another dimension."""
        if not self.unit:
            return quantity.value
        table = unit_table(self.units)
        own = unit_of(self.unit, table)
        given = unit_of(quantity.unit, table) if quantity.unit else own
        if own is None or given is None or given[1] != own[1]:
            return None
        with localcontext(ARITHMETIC):
            return quantity.value * given[0]

    def _equal(self, got: Decimal, wanted: Decimal) -> bool:
        size = unit_of(self.unit, unit_table(self.units)) if self.unit else None
        with localcontext(ARITHMETIC):
            whole = got == got.to_integral_value() and wanted == wanted.to_integral_value()
            noise = Decimal(0) if whole else _NOISE * abs(wanted)
            absolute = Decimal(repr(self.absolute)) * (size[0] if size else 1)
            return abs(got - wanted) <= max(absolute, Decimal(repr(self.relative)) * abs(wanted), noise)
