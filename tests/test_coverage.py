"""The coverage benchmark plants what it says: means over seeds and of each run, arms that do not train, difficulty."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def coverage() -> Any:
    file = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_is_planted_is_drawn(coverage: Any) -> None:
    condition = coverage.CONDITIONS[2]
    golds, runs = coverage.draw(condition, 200, 3, 0.2, 600, np.random.default_rng(0))
    assert golds.shape == (600, 5, 3, 200)
    assert golds.mean(axis=(0, 2, 3)) == pytest.approx(condition.means, abs=0.015)
    assert runs.mean(axis=(0, 2)) == pytest.approx(condition.means, abs=0.015)
    assert np.mean((golds.mean(axis=3) - runs) ** 2) < 0.0012  # of 200 answers; a trained arm's seeds would add 0.004
    assert (golds[:, :2] == golds[:, :2, :1]).all()
    spread = runs.std(axis=(0, 2))
    assert spread[:2] == pytest.approx(0)
    assert spread[2:].min() > 0.02
    assert np.corrcoef(golds[:, 0, 0].ravel(), golds[:, 3, 0].ravel())[0, 1] > 0.1


def test_a_cell_counts_what_covers_and_what_is_falsely_resolved(coverage: Any) -> None:
    null, large = coverage.CONDITIONS[0], coverage.CONDITIONS[2]
    one = coverage.measure(null, 128, 1, 0.2, 300, seed=0)
    assert min(one.coverage.values()) > 0.9
    assert max(one.unconditional.values()) < 0.9  # seeds' variance is not in a one-seed interval
    assert one.false == {}  # each run's own effect differs from 0
    three = coverage.measure(null, 128, 3, 0.2, 300, seed=0)
    assert set(three.false) == {"prompt", "weights", "interaction", "order", "gain"}
    assert all(three.false[name] == pytest.approx(1 - three.coverage[name]) for name in three.false)
    assert coverage.measure(large, 128, 3, 0.0, 50, seed=0).false == {}
    assert set(coverage.summary([one, three])) == {
        "coverage", "false_resolved", "stress", "of_means", "one_seed_over_all_seeds"
    }  # fmt: skip
