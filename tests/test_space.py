"""What a sweep searches: ranges that every trial can draw from."""

from __future__ import annotations

from typing import Any

import pytest

from colever.config import load_config
from colever.errors import UsageError
from colever.optimizers import space


def ranges(search: dict[str, Any]) -> list[space.Range]:
    return space.ranges(load_config(flags={"task": "t"}, overrides={"search": search}))


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("weights.group_size", (1, 16), "weights.group_size: 1 is in the range.*greater than or equal to 2"),
        ("weights.temperature", (0.5, 3), "weights.temperature: 3 is in the range.*less than or equal to 2"),
        ("weights.learning_rate", (0, 1), "weights.learning_rate: 0 is in the range.*greater than 0"),
        ("weights.updates", (1, float("inf")), "weights.updates: inf; accepted: a whole number"),
        ("weights.updates", (1.5, 80), "weights.updates: 1.5; accepted: a whole number"),
        ("weights.learning_rate", (1e-5, float("inf")), "weights.learning_rate: inf; accepted: a finite number"),
        ("weights.updates", (1, 2), "weights.updates: the arms' value 40 must lie in the range"),
        ("weights.loss", (1, 2), "'weights.loss' is no setting with a number; accepted: prompt.candidates"),
    ],
)
def test_a_range_that_a_trial_cannot_draw_from(name: str, limits: tuple[float, float], said: str) -> None:
    with pytest.raises(UsageError, match=f"^search: {said}"):
        ranges({name: list(limits)})


def test_ranges_at_the_edge_of_what_is_accepted() -> None:
    found = ranges({"weights.group_size": [2, 16], "prompt.threshold": [0, 1]})
    assert [(r.name, r.low, r.high, r.whole) for r in found] == [
        ("weights.group_size", 2, 16, True),
        ("prompt.threshold", 0, 1, False),
    ]
