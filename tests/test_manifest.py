"""Two reports compared: what differs is named, times are not asked for."""

from __future__ import annotations

from colever.optimizers.evaluate import Grounds
from colever.optimizers.manifest import changes, unlike


def test_what_differs_is_named() -> None:
    old = {"table": {"base": {"gold": 0.5}}, "cost": {"seconds": 1.0, "rollouts": 4}, "path": [{"kept": True}], "a": 1}
    assert unlike(old, {**old, "cost": {"seconds": 2.0, "rollouts": 4}, "expected": {"rollouts": 9}}) == []
    new = {"table": {"base": {"gold": 0.6}}, "cost": old["cost"], "path": [{"kept": False}]}
    assert unlike(old, new) == ["table.base.gold: 0.5, now 0.6", "path[0].kept: True, now False", "a: 1, now None"]
    assert unlike({"path": [1]}, {"path": [1, 2]}) == ["path: [1], now [1, 2]"]


def test_changes_since_are_named() -> None:
    grounds = Grounds("t", "e", {"torch": "2.0", "trl": "1.0"})
    made = {"task": "t", "engine": "other", "versions": {"torch": "1.0", "trl": "1.0", "optuna": "4"}}
    assert changes(made, grounds) == ["the engine is another", "torch was 1.0, is 2.0"]
