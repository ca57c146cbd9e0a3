"""Numbers in text, with their units: how people write them, read into decimals. Knows nothing of right and wrong."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from typing import Any, Literal

from colever.tasks.criteria.fields import text_of

Mark = Literal[".", ","]

ARITHMETIC = Context(prec=50, Emax=99_999, Emin=-99_999, traps=[])
LONGEST_NUMBER = 400  # characters: a run of more digits is noise
_GROUPS = "'’\u00a0\u2009\u202f"  # marks of thousands besides the comma or the point
_WORDS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


@dataclass(frozen=True)
class Quantity:
    """A number and the unit that stands behind it, as written ("" where there is none)."""

    value: Decimal
    unit: str = ""


def quantities(value: Any, mark: Mark = ".", percent: bool = True, backwards: bool = False) -> Iterator[Quantity]:
    """Every finite number of a value: of a number itself, of a text all that are written in it, in order or backwards.

    Read are ``1,234.5``, ``-$3``, ``2.5e3``, ``2 × 10^3``, ``3/4``, ``1 1/2``, ``½``, ``40 %``, ``3 million``; with
    ``percent`` ``40 %`` is 0.4, else 40. ``mark`` is the decimal mark.
    """
    if isinstance(value, bool):
        return
    if isinstance(value, int | float | Decimal):
        with localcontext(ARITHMETIC):
            number = Decimal(str(value)) if isinstance(value, float) else +Decimal(value)
        yield from [Quantity(number)] if number.is_finite() else []
        return
    matches = list(_pattern(mark).finditer(_plain(text_of(value) or "")))
    for match in reversed(matches) if backwards else matches:
        if (quantity := _quantity(match, mark, percent)) is not None:
            yield quantity


def _plain(text: str) -> str:
    """With ``½`` as ``1/2`` and every minus sign as ``-``."""
    parts = []
    for character in text:
        decomposed = unicodedata.decomposition(character)
        if decomposed.startswith("<fraction>"):
            codes = [chr(int(code, 16)) for code in decomposed.split()[1:]]
            parts.append(" " + "".join(codes).replace("\u2044", "/"))
        else:
            parts.append({"\u2212": "-", "\u2044": "/", "\uff0d": "-"}.get(character, character))
    return "".join(parts)


@functools.cache
def _pattern(mark: Mark) -> re.Pattern[str]:
    group, point = ("," if mark == "." else r"\."), re.escape(mark)
    whole = rf"(?:\d{{1,3}}(?:[{group}{_GROUPS}]\d{{3}}(?!\d))+|\d+)"
    unit = r"[^\W\d_]+(?:\^?[23²³])?"
    power = r"\s?[×x*]\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>[-+]?\d{1,4})(?!\d)\}?"
    return re.compile(
        rf"(?<![\w{point}])(?P<sign>(?:(?<![)\]])[-+])?)(?:[$€£¥₹₩]\s?)?(?P<sign2>[-+]?)"
        rf"(?:(?:(?P<units>\d{{1,9}})\s+)?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)(?![\d/])"
        rf"|(?P<number>{whole}(?:{point}\d+)?|{point}\d+)(?:[eE](?P<exponent>[-+]?\d{{1,4}})(?!\d)|{power})?)"
        rf"(?:\s?(?P<word>{'|'.join(_WORDS)})\b)?"
        rf"(?:\s?(?P<percent>%|percent\b|per cent\b)|\s?(?P<unit>{unit}(?:/{unit})?))?"
    )


def _quantity(match: re.Match[str], mark: Mark, percent: bool) -> Quantity | None:
    if len(match[0]) > LONGEST_NUMBER:
        return None
    with localcontext(ARITHMETIC):
        if match["top"]:
            value = Decimal(match["units"] or 0) + Decimal(match["top"]) / Decimal(match["bottom"])
        else:
            digits = re.sub(rf"[{'.' if mark == ',' else ','}{_GROUPS}]", "", match["number"]).replace(mark, ".")
            value = Decimal(digits).scaleb(int(match["exponent"] or match["power"] or 0))
        value = value.scaleb(_WORDS.get(match["word"] or "", 0) - (2 if match["percent"] and percent else 0))
        value = -value if "-" in (match["sign"], match["sign2"]) else +value
    return Quantity(value, match["unit"] or "") if value.is_finite() else None


# --- units -----------------------------------------------------------------------------------------

Dimension = tuple[tuple[str, int], ...]
_PREFIXES = {"n": -9, "µ": -6, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6, "G": 9, "T": 12}
_LONG_PREFIXES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}
_LONG_PREFIXES["tera"] = 12
_SYMBOLS = {
    "meter": "m", "gram": "g", "second": "s", "liter": "l", "watt": "W", "joule": "J", "volt": "V", "ampere": "A",
    "hertz": "Hz", "newton": "N", "pascal": "Pa", "byte": "B", "bit": "bit", "mole": "mol",
}  # fmt: skip
_SPELLINGS = {"metre": "meter", "litre": "liter", "feet": "foot", "inches": "inch", "amp": "ampere", "L": "l"}
_OTHERS = {
    "min": "60 s", "minute": "60 s", "h": "3600 s", "hr": "3600 s", "hour": "3600 s", "day": "86400 s",
    "week": "604800 s", "inch": "0.0254 m", "in": "0.0254 m", "foot": "0.3048 m", "ft": "0.3048 m",
    "yard": "0.9144 m", "mile": "1609.344 m", "mi": "1609.344 m", "lb": "453.59237 g", "pound": "453.59237 g",
    "oz": "28.349523125 g", "ounce": "28.349523125 g", "tonne": "1000000 g", "t": "1000000 g",
}  # fmt: skip


def unit_table(lines: Sequence[str]) -> dict[str, str]:
    """``"furlong = 201.168 m"`` → ``{"furlong": "201.168 m"}``; raises ValueError with the line that is not like it."""
    table = {}
    for line in lines:
        match = re.fullmatch(r"\s*([^\W\d_]+)\s*=\s*(\d+(?:\.\d+)?)\s*([^\s\d]\S*)?\s*", line)
        if match is None:
            raise ValueError(line)
        table[match[1]] = f"{match[2]} {match[3] or match[1]}"
    return table


def unit_of(name: str, table: Mapping[str, str]) -> tuple[Decimal, Dimension] | None:
    """A unit's size in base units and its dimension; ``km/h`` and ``m^2`` are read; None for an unknown one."""
    factor, powers = Decimal(1), dict[str, int]()
    for place, part in enumerate(name.split("/")):
        match = re.fullmatch(r"(.*?)(?:\^?([23])|([²³]))?", part)
        known = _simple(match[1], table) if match else None
        if match is None or known is None:
            return None
        sign, power = (-1 if place else 1), int((match[2] or match[3] or "1").translate({0xB2: "2", 0xB3: "3"}))
        with localcontext(ARITHMETIC):
            factor *= known[0] ** (sign * power)
        powers[known[1]] = powers.get(known[1], 0) + sign * power
    return factor, tuple(sorted((base, power) for base, power in powers.items() if power))


def _simple(name: str, table: Mapping[str, str]) -> tuple[Decimal, str] | None:
    """A unit without powers: (size, base unit)."""
    for spelled in (name, name.removesuffix("s")):
        if spelled in table:
            size, base = table[spelled].split(" ")
            if base == spelled or (known := _simple(base, {k: v for k, v in table.items() if k != spelled})) is None:
                return Decimal(size), base
            return Decimal(size) * known[0], known[1]
        spelled = _SPELLINGS.get(spelled, spelled)
        if spelled in _OTHERS:
            size, base = _OTHERS[spelled].split(" ")
            return Decimal(size), base
        if found := _prefixed(spelled, _PREFIXES, set(_SYMBOLS.values())):
            return found
        if found := _prefixed(spelled, _LONG_PREFIXES, {*_SYMBOLS, *_SPELLINGS}):
            return found[0], _SYMBOLS[_SPELLINGS.get(found[1], found[1])]
    return None


def _prefixed(name: str, prefixes: Mapping[str, int], bases: set[str]) -> tuple[Decimal, str] | None:
    if name in bases:
        return Decimal(1), name
    for prefix, power in prefixes.items():
        if name.startswith(prefix) and name[len(prefix) :] in bases:
            return Decimal(1).scaleb(power), name[len(prefix) :]
    return None
