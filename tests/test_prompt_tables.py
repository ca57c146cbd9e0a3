"""The report's tables of prompt rounds: what train promised and dev gave, headroom, what every call pays."""

from __future__ import annotations

from dataclasses import replace

from synthetic_study import make_report, make_round, make_trials
from test_report import text_of

from colever.optimizers.prompt_rounds import prompt_rounds
from colever.prompt_notes import PromptNotes, drop_of
from colever.reported import PromptRound, StudyReport
from colever.tracking.prompt_tables import headroom, prompt_tokens
from colever.tracking.prompt_tables import prompt_rounds as table_of
from colever.tracking.report_json import to_json
from colever.tracking.tables import tables
from colever.types import Candidate, Evaluation, PredictorPrompt


def without_notes(report: StudyReport) -> StudyReport:
    """As rounds were noted before: what was chosen and tried."""
    first = report.prompt_rounds[0]
    record = replace(first.record, notes={"chosen": "as it was", "tried": []}, accepted=False)
    return replace(report, prompt_rounds=[replace(first, record=record), *report.prompt_rounds[1:]])


def test_a_rounds_row_has_its_way_both_scores_and_the_paired_change() -> None:
    table = table_of(make_report())
    assert table.columns == ["round", "way", "train", "dev", "drop", "kept", "gain on dev [95 %]"]
    assert list(table.rows[0].cells) == ["0.1", "fewshot", "84.2 %", "76.2 %", "+8.0", "yes", "+11.4 [9.3, 13.5]"]
    row = table_of(without_notes(make_report())).rows[0]
    assert list(row.cells)[1:5] == ["–", "–", "76.2 %", "–"]
    assert row.style == "faint"


def test_headroom_has_its_verdict_interval_and_cost_and_is_left_out_where_none_was_tested() -> None:
    report = without_notes(make_report())
    table = headroom(report)
    assert table is not None
    assert list(table.rows[0].cells) == ["0.1", *["–"] * 5]
    assert list(table.rows[1].cells) == ["3.2", "go", "+3.0 [-1.0, 7.0] unresolved", "14", "32", "448"]
    assert headroom(replace(report, prompt_rounds=report.prompt_rounds[:1])) is None


def test_prompt_tokens_of_a_call_and_of_a_rollout_with_the_factor_over_base() -> None:
    table = prompt_tokens(make_report())
    assert table is not None
    assert table.columns[:5] == ["predictor", "base", "prompt only", "weights only", "both levers"]
    assert list(table.rows[0].cells)[:5] == ["work", "53.0", "180.0", "53.0", "180.0"]
    assert list(table.foot[0].cells)[:5] == ["a rollout", "166.0", "420.0", "166.0", "420.0"], "work is called twice"
    assert list(table.foot[1].cells)[:5] == ["over base", "× 1.00", "× 2.53", "× 1.00", "× 2.53"]


def test_evaluations_stored_before_tokens_were_counted_have_no_table() -> None:
    report = make_report()
    old = {name: replace(cell, prompt_tokens={}, calls={}) for name, cell in report.table.items()}
    report = replace(report, table=old, parts={})
    assert prompt_tokens(report) is None
    assert "prompt tokens" not in tables(report)
    stored = make_round("prompt", "", report.path[0].parent).before.to_json()
    del stored["prompt_tokens"], stored["calls"]
    assert Evaluation.from_json(stored).prompt_tokens == {}


def test_it_all_fits_80_columns() -> None:
    first, last = make_report().prompt_rounds
    notes = {**first.record.notes, "way": "my_package.my_module:MyOwnTeleprompter"}
    odd = replace(first, name="12.3", record=replace(first.record, notes=notes))
    report = replace(make_report(), prompt_rounds=[odd, last])
    text = text_of(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_round_that_trials_share_is_told_once_with_its_change() -> None:
    trials = make_trials(schedules=("p", "w", "p,w", "w,p"))
    found = prompt_rounds(trials)
    assert [pulled.name for pulled in found] == ["0.1", "3.2"]
    change = found[0].change
    assert change is not None
    assert abs(change.value - (found[0].record.after.score - found[0].record.before.score)) < 1e-9
    assert change.low < change.value < change.high


def test_json_has_what_the_tables_have() -> None:
    data = to_json(without_notes(make_report()))
    one, two = data["prompt_rounds"]
    assert (one["way"], one["train"], one["drop"], one["headroom"]) == (None, None, None, None)
    assert (two["round"], two["way"], two["train_examples"]) == ("3.2", "fewshot", 96)
    assert two["headroom"]["rollouts"] == 448
    assert abs(two["drop"] - 0.08) < 1e-9
    assert set(two["prompts"]) == {"work", "check"}
    assert data["table"]["prompt"]["prompt_tokens"] == {"work": 180.0, "check": 60.0}
    assert data["path"][0]["after"]["prompt_tokens"]["work"] == 180.0


def test_notes_may_hold_nothing() -> None:
    record = replace(make_round("prompt", "", make_report().path[0].parent), notes={"selected": None, "headroom": None})
    assert PromptNotes.of(record) == PromptNotes("", "")
    assert drop_of(record) is None
    assert PromptRound("0.1", record, None).notes.train is None


def test_nearest_is_told_where_demos_are_counted() -> None:
    report = make_report()
    last = report.path[-1]
    prompts = {"work": PredictorPrompt("Go.", ({"q": "1"},) * 32, 4)}
    path = (*report.path[:-1], replace(last, child=Candidate(prompts, last.child.weights)))
    assert list(tables(replace(report, path=path))["prompts"].rows[0].cells) == ["work", "Go.", "32, nearest 4"]
