"""The terminal report, its JSON and its stored form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console
from synthetic_study import make_report, no_gold_report, unfinished_report

from colever.reported import Cell, StudyReport
from colever.tracking.report import kept_schedule, verdict
from colever.tracking.report_json import to_json
from colever.tracking.terminal import render

CELL = {"score", "low", "high", "gold", "gold_low", "gold_high"}


def text_of(report: StudyReport, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    return console.export_text()


def test_verdict_says_from_what_to_what_and_who_earned_it() -> None:
    assert verdict(make_report()) == (
        "arithmetic: 62.1 % → 94.3 % gold on test (n = 512) by prompt → weights: prompt lever +10.3 points, "
        "weight lever +21.9 points, interaction +2.7 points (unresolved). Target 90 % reached."
    )
    assert "on dev by weights after 2 trials; the study is not finished" in verdict(unfinished_report())
    assert verdict(no_gold_report()).startswith("arithmetic: 65.1 % → 75.5 % score on test")


def test_verdict_is_first_and_every_table_fits_80_columns() -> None:
    for report in (make_report(), unfinished_report(), no_gold_report()):
        text = text_of(report)
        assert " ".join(text.split()).startswith(verdict(report))
        assert "…" not in text, "a cell was cut"
        assert max(map(len, text.splitlines())) <= 80


def test_score_and_gold_stand_side_by_side_with_intervals() -> None:
    row = next(line for line in text_of(make_report()).splitlines() if line.split()[:2] == ["both", "p,w"])
    assert "94.3 % [92.2, 96.4]" in row
    assert "94.6 % [92.5, 96.7]" in row


def test_not_pulled_and_unresolved_are_said() -> None:
    assert text_of(no_gold_report()).count("not pulled") == 2
    assert "gold [95 %]" not in text_of(no_gold_report())
    interaction = next(line for line in text_of(make_report()).splitlines() if "interaction " in line and "[" in line)
    assert "unresolved" in interaction


def test_path_lengths_thresholds_costs_survival_and_condition_are_there() -> None:
    text = " ".join(text_of(make_report()).split())
    for piece in (
        "Completion length on that path, in tokens",
        "Watched split: longer chains",
        "70 % prompt 1 448",
        "conditional on this one training run",
        "gained +32.4 points there and +32.2 on test, 99 % of it",
        "5,568",
    ):
        assert piece in text


def test_unfinished_report_shows_no_test_table() -> None:
    text = text_of(unfinished_report())
    assert "Arms on test" not in text
    assert "test is read once" in text
    assert "not reached" in text


def test_a_round_that_was_not_kept_is_not_credited() -> None:
    report = make_report()
    last = report.path[-1]
    extra = replace(last, lever="prompt", before=last.after, after=last.before, accepted=False)
    longer = replace(report, winner="p,w,p", path=(*report.path, extra))
    assert kept_schedule(longer) == "p,w"
    assert "by prompt → weights:" in verdict(longer)
    assert any(line.split()[:2] == ["3", "prompt"] and " no " in line for line in text_of(longer).splitlines())


def test_json_has_the_public_keys() -> None:
    data = to_json(make_report())
    assert {"task", "model", "target", "table", "effects", "thresholds", "arms"} <= set(data)
    assert set(data["table"]) == {"base", "prompt", "weights", "both"}
    assert all(set(cell) >= CELL for cell in data["table"].values())
    assert data["table"]["both"]["gold"] == pytest.approx(0.943)
    assert {"prompt", "weights", "interaction"} <= set(data["effects"])
    assert set(data["effects"]["prompt"]) == {"value", "low", "high", "resolved", "over", "spread"}
    assert data["effects"]["interaction"]["resolved"] is False
    assert all(set(row) == {"at", "lever", "round", "cost"} for row in data["thresholds"])
    assert all({"schedule", "dev", "test", "cost"} <= set(row) for row in data["arms"])
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_json_names_the_examples_that_flipped_and_not_what_they_hold() -> None:
    report = make_report()
    assert report.flips is not None
    held = replace(report, flips=replace(report.flips, fields={"test-7": {"problem": "secret"}}))
    data = to_json(held)
    assert set(data["flips"]) == {"examples", "gained", "lost", "p_value"}
    assert data["flips"]["lost"] == ["test-7", "test-40"]
    assert "secret" not in json.dumps(data)
    assert to_json(unfinished_report())["flips"] is None


def test_json_is_null_where_nothing_was_pulled_or_measured() -> None:
    data = to_json(no_gold_report())
    assert {data["table"]["both"][key] for key in CELL} == {None}
    assert data["table"]["prompt"]["gold"] is None
    assert data["effects"]["interaction"] is None
    assert [row["test"] for row in to_json(unfinished_report())["arms"]] == [None, None]
    cell = Cell("base", None, None, dev=float("nan"))
    assert to_json(replace(make_report(), table={"base": cell}))["table"]["base"]["dev"] is None
