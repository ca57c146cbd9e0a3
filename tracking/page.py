"""A report as one HTML page that can be mailed: no script, no file beside it. Reads a StudyReport only.

Everything that comes from data is escaped by the template (``page.html``); a content policy in the page's head keeps a
browser from loading or running anything all the same. Knows no files but its template, no MLflow and no tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from colever.reported import Flips, StudyReport
from colever.samples import cut
from colever.tracking import page_figures
from colever.tracking.figures import LEVER_COLOURS, PALETTE, arm_label, cost_units, drawn_arms
from colever.tracking.hacking import evidence, warnings
from colever.tracking.prompt_text import changes, demos_text, kind_of
from colever.tracking.prompts import round_text
from colever.tracking.report import best_cell, effect_text, footnotes, measure, verdict
from colever.tracking.rollouts import by_turns, score_text, step_text
from colever.tracking.table import Table
from colever.tracking.tables import criteria, tables
from colever.types import Candidate

IDS_SHOWN = 500  # of flipped examples, in each direction
ROUNDS_SHOWN = 30  # of the prompt lever, with what each changed
LINES_SHOWN, ALL_LINES = 120, 1200  # of one predictor's diff, and of that of all rounds
LINE_SHOWN = 500  # characters of such a line
TEXT_SHOWN = 2000  # characters of one field of a demo or of an example, of a prompt or of a completion
# On a dark ground these would be hard to tell from it, or from the text.
DARK = {"#8c8c8c": "#9a9a9a", "#0072b2": "#4aa8e0", "#009e73": "#2dbf93", "#262626": "#d9d9d9", "#7f3c8d": "#b57cc4"}


def to_html(report: StudyReport) -> str:
    """The whole page. Figures and tables are left out where the report has no data for them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("colever.tracking", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"unbroken": unbroken, "brief": brief, "id": anchor, "kinds": kinds, "scored": score_text}
    made.filters |= {"calls": step_text, "demos": demos_text, "middle": lambda text: cut(by_turns(text), TEXT_SHOWN)}
    return made.get_template("page.html").render(_content(report), zip=zip)


def _content(report: StudyReport) -> dict[str, Any]:
    found = tables(report)
    flipped = {*report.flips.gained, *report.flips.lost} if report.flips else set()
    watched = [table for name, table in found.items() if name.startswith("watched ")]
    return {
        "report": report,
        "measure": measure(report),
        "verdict": verdict(report),
        "examples": best_cell(report).examples,
        "tables": found,
        "watched": watched,
        "criteria": criteria(report) if report.finished else None,
        "waterfall": page_figures.waterfall(report),
        "square": page_figures.square(report),
        "interaction": effect_text(report.effects.get("interaction")),
        "curves": {unit: drawn for unit in cost_units(report) if (drawn := page_figures.cost_curves(report, unit))},
        "legend": [
            (arm_label(arm), page_figures.colour_class(colour, "back")) for arm, colour, _ in drawn_arms(report)
        ],
        "criteria_changes": page_figures.criteria_changes(report) if report.finished else None,
        "prompts": report.path[-1].kept.prompts if report.path else {},
        "from_base": _from_base(report),
        "pulled": _pulled(report),
        "flips": report.flips,
        "turned": _turned(report.flips) if report.flips else (),
        "others": {name: pair for name, pair in report.rollouts.items() if name not in flipped},
        "footnotes": list(footnotes(report)),
        "warnings": list(warnings(report)),
        "evidence": evidence(report),
        "hacking": page_figures.score_and_gold(report),
        "colours": {colour: DARK.get(colour, colour) for colour in dict.fromkeys([*LEVER_COLOURS.values(), *PALETTE])},
    }


def _from_base(report: StudyReport) -> Mapping[str, Sequence[tuple[str, str]]]:
    """What changed in each predictor's prompt from base to the winner."""
    if not report.path:
        return {}
    return _changes(report.path[0].parent, report.path[-1].kept, ("base", "winner"))


def _pulled(report: StudyReport) -> Sequence[Mapping[str, Any]]:
    """Each prompt round in words, and what it changed; of very many, the first ones."""
    shown = report.prompt_rounds[:ROUNDS_SHOWN]
    most = min(LINES_SHOWN, ALL_LINES // max(1, len(shown)))
    return [
        {
            "title": f"{pulled.name}: {round_text(pulled.record)}",
            "changes": _changes(pulled.record.parent, pulled.record.child, ("parent", pulled.name), most),
        }
        for pulled in shown
    ]


def _changes(
    before: Candidate, after: Candidate, names: tuple[str, str], most: int = LINES_SHOWN
) -> dict[str, list[tuple[str, str]]]:
    """By predictor the lines of the diff with what each is; of a long one, the first ``most`` lines."""
    found = {}
    for name, lines in changes(before.prompts, after.prompts, names).items():
        found[name] = [(kind_of(line), cut(line, LINE_SHOWN)) for line in lines[:most]]
        if (more := len(lines) - most) > 0:
            found[name].append(("place", f"… and {more:,} lines more: colever show prints them"))
    return found


def _turned(flips: Flips) -> Sequence[Mapping[str, Any]]:
    """Both directions: the ids as far as they are shown, how many are not, and the examples at hand."""
    return [
        {
            "title": title,
            "count": len(ids),
            "ids": ids[:IDS_SHOWN],
            "more": max(0, len(ids) - IDS_SHOWN),
            "shown": {name: flips.fields[name] for name in ids if name in flips.fields},
        }
        for title, ids in (("From wrong to right", flips.gained), ("From right to wrong", flips.lost))
    ]


def unbroken(text: str) -> str:
    """No line break inside a number or an interval."""
    return re.sub(r"(?<=[\d,]) (?=[\d%-]|(?:min|s|h)\b)|(?<=min) (?=\d)|(?<= h) (?=\d)", "\u00a0", text)


def brief(value: object) -> str:
    """As text, cut where it is very long."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} … ({len(text):,} characters)"


def kinds(table: Table) -> list[str]:
    """The class of each column's cells."""
    return ["long" if name in table.wrap else "" if name in table.left else "num" for name in table.columns]


def anchor(table: Table) -> str:
    """An id for the table's heading."""
    return "t-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in table.title.lower())
