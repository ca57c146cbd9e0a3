"""The figures: each drawn where there is data for it, labelled, and not empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from synthetic_study import make_report, no_gold_report, unfinished_report

from colever.reported import StudyReport
from colever.tracking import figures

ALL = ["1-levers", "2-cost", "3-rubric-and-gold", "4-training"]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (make_report(), ALL),
        (unfinished_report(), ALL[1:]),
        (no_gold_report(), ALL[:3]),
        (replace(make_report(), path=(), arms=[], winner=""), ALL[:1]),
    ],
    ids=["finished", "unfinished", "no gold, prompt only", "no trial"],
)
def test_save_all_draws_what_there_is_data_for(report: StudyReport, expected: list[str], tmp_path: Path) -> None:
    paths = figures.save_all(report, tmp_path / "figures")
    assert [path.stem for path in paths] == expected
    for path in paths:
        pixels = imread(path)
        assert pixels.shape[0] > 300
        assert (pixels[..., :3].min(axis=2) < 0.9).mean() > 0.01, f"{path.name} is blank"


def test_every_axis_is_labelled() -> None:
    report = make_report()
    for draw in (figures.levers, figures.score_against_cost, figures.rubric_and_gold, figures.training):
        figure = draw(report)
        assert figure is not None
        assert figure.get_suptitle()
        assert all(axis.get_ylabel() for axis in figure.axes)


def test_cost_has_its_unit_and_every_arm_its_name() -> None:
    figure = figures.score_against_cost(make_report())
    assert figure is not None
    assert [axis.get_xlabel() for axis in figure.axes] == ["cost so far (rollouts)", "cost so far (computed TFLOPs)"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["prompt → weights (#2)", "weights → prompt (#3)", "weights (#1)", "prompt (#0)"]


def test_unresolved_effects_and_the_target_are_marked() -> None:
    figure = figures.levers(make_report())
    assert figure is not None
    arms, effects = figure.axes
    assert any("target 90 %" in text.get_text() for text in arms.texts)
    assert any("unresolved" in text.get_text() for text in effects.texts)
