"""How MLflow's runs of arms and rounds are called and coloured. Knows schedules."""

from __future__ import annotations

from collections.abc import Sequence

from colever.config import ADAPTIVE
from colever.tracking.report import spelled

# The same arm has the same colour in every study, the first five also in the figures; searched schedules get MLflow's
# own, of which two may be alike.
COLOURS = {
    "": "#8c8c8c", "p": "#e69f00", "w": "#0072b2", "p,w": "#009e73", "w,p": "#cc79a7", "p,w,p": "#7f3c8d",
    "w,p,w": "#d55e00", ADAPTIVE: "#56b4e9",
}  # fmt: skip


def along(levers: Sequence[str]) -> str:
    """``prompt → weights``; of a long schedule all but its last lever in letters: ``p,w,p → weights``."""
    most = 3
    if len(levers) <= most:
        return spelled(",".join(levers))
    return f"{','.join(levers[:-1])} → {spelled(levers[-1])}"
