"""One SVG picture to stand inside an HTML page: shapes by class, colours left to the page's style sheet.

Knows coordinates; knows no studies. Text from data is escaped on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

Scale = Callable[[float], float]


class Picture:
    """``width`` by ``height`` user units, scaled to the page's column. ``label`` is for screen readers."""

    def __init__(self, width: float, height: float, label: str) -> None:
        box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
        self._root = ElementTree.Element("svg", box)
        self.width, self.height = width, height

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def box(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """``tip`` is what a pointer that rests on it is told."""
        self._add("rect", kind, tip, x=x, y=y, width=width, height=max(height, 0.8), rx=2)

    def dot(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        self._add("circle", kind, tip, cx=x, cy=y, r=radius)

    def path(self, points: Sequence[tuple[float, float]], kind: str, width: float) -> None:
        """A line through the points."""
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polyline", kind, points=drawn, stroke_width=width)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self._add("text", kind, x=x, y=y, text_anchor=anchor).text = text

    def whisker(self, x: float, low: float, high: float, kind: str = "whisker") -> None:
        """A vertical interval between two heights, with caps."""
        self.line(x, low, x, high, kind)
        for y in (low, high):
            self.line(x - 4, y, x + 4, y, kind)

    def markup(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, kind: str, tip: str = "", **attributes: float | str) -> ElementTree.Element:
        fields = {
            name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}"
            for name, value in attributes.items()
        }
        element = ElementTree.SubElement(self._root, tag, {**fields, **({"class": kind} if kind else {})})
        if tip:
            ElementTree.SubElement(element, "title").text = tip
        return element


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """``low`` … ``high`` onto ``start`` … ``end``, in a straight line."""
    per_unit = (end - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * per_unit


def ticks(high: float, count: int = 5) -> list[float]:
    """Round numbers from 0 up to the first that is at least ``high``."""
    rough = high / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough - 1e-12)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]
