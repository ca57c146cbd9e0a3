"""Kept rollouts of a stored study: of a round, of base beside the winner, in the terminal and on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_study import make_flips, make_report, make_rollout
from test_page import HOSTILE, Page
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, toy_task

from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.attribution import report_of
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.side_by_side import rollouts_of, with_rollouts
from colever.optimizers.study import StudyFolder
from colever.optimizers.sweep import sweep
from colever.shown import with_examples
from colever.tracking.page import to_html
from colever.tracking.rollouts import render


def study(home: Path, **flags: object) -> StudyFolder:
    """A finished study of two trials: the prompt lever's and both levers'."""
    small = {"prompt.candidates": 2, "prompt.screen": 8, "prompt.examples": 16, "prompt.demos": 2}
    flags = {"task": "toy", "model": "toy", "schedules": ["p", "p,w"], "trials": 2, **flags}
    config = load_config(flags=flags, overrides=small)
    sweep(
        config, toy_task(), ToyEngine(), home,
        levers=lambda p, w: {"prompt": PromptLever(p), "weights": ToyWeightLever(ToyWeightSettings())},
    )  # fmt: skip
    return StudyFolder(home, config.study_name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return study(tmp_path_factory.mktemp("home"))


def test_every_round_kept_the_same_examples_as_base(folder: StudyFolder) -> None:
    base = rollouts_of(folder, "base", "dev")
    assert len(base) == 8
    for which in ("0.1", "1.1", "1.2", "winner"):
        assert [r.example_id for r in rollouts_of(folder, which, "dev")] == [r.example_id for r in base]
    assert rollouts_of(folder, "winner", "test")[0].example_id.startswith("test-")
    assert rollouts_of(folder, "base", "far")
    assert rollouts_of(folder, "0.1", "dev") == rollouts_of(folder, "1.1", "dev"), "one round that two trials share"


@pytest.mark.parametrize(
    ("which", "split", "said"),
    [
        ("7.1", "dev", "accepted: 0.1, 1.1, 1.2"),
        ("p,w", "dev", "base, winner, or TRIAL.ROUND, here 0.1"),
        ("base", "train", "--split 'train': accepted: dev, test, far"),
    ],
)
def test_what_there_is_not_is_said(folder: StudyFolder, which: str, split: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rollouts_of(folder, which, split)


def test_a_study_may_keep_none_and_has_the_same_report(folder: StudyFolder, tmp_path: Path) -> None:
    other = study(tmp_path, sample_rollouts=0)
    with pytest.raises(UsageError, match="sample_rollouts=0 keeps none"):
        rollouts_of(other, "base", "dev")
    one, none = report_of(folder), report_of(other)
    assert {n: c.score for n, c in none.table.items()} == {n: c.score for n, c in one.table.items()}
    assert [r.key for r in none.path] == [r.key for r in one.path]
    assert with_rollouts(none, other) == none


def test_the_report_has_base_beside_the_winner_and_the_fields_of_what_flipped(folder: StudyFolder) -> None:
    report = with_rollouts(report_of(folder), folder)
    assert len(report.rollouts) == 8
    assert report.flips is not None
    turned = {*report.flips.gained, *report.flips.lost}
    assert set(report.flips.fields) == turned & set(report.rollouts) != set()
    for name, (base, winner) in report.rollouts.items():
        assert base.example_id == winner.example_id == name
        assert (winner.gold == 1 != base.gold) == (name in report.flips.gained)
    shown = with_examples(report, toy_task())
    assert shown.flips is not None
    assert set(shown.flips.fields) > turned & set(report.rollouts)
    text = Page(to_html(shown)).text
    assert text.count("What base and the winner did") == len(turned & set(report.rollouts))
    assert "More rollouts, base beside the winner" in text
    unfinished = replace(report_of(folder), finished=False)
    assert with_rollouts(unfinished, folder) == unfinished


def test_the_page_shows_both_folded_and_escaped() -> None:
    pair = (make_rollout("test-7", 0.25, HOSTILE), make_rollout("test-7", 1.0, "11"))
    report = replace(make_report(), rollouts={"test-7": pair, "test-9": pair})
    flips = replace(make_flips(), fields={"test-7": {"problem": "1"}})
    tame = Page(to_html(make_report()))
    page = Page(to_html(replace(report, flips=flips)))
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in tame.elements} <= {"article", "h4", "h5", "pre"}
    assert page.text.count(HOSTILE) >= 6, "prompt, completion, fields and feedback of two"
    assert "score 0.25 (answer 0.25, format 1), gold 0" in page.text
    assert "test-9: base score 0.25" in page.text
    assert "open" not in {name for attributes in page.of("details")[-4:] for name in attributes}


def test_the_terminal_shows_what_was_read_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    from colever.console import show

    lost = replace(make_rollout("test-8", None, ""), failure="infrastructure", reason="TimeoutError: slow", steps=())
    failed = replace(make_rollout("test-9", 0.0, "[bold]"), failure="policy", reason="AdapterParseError: no answer")
    show(render([make_rollout("test-7", 1.0, "11"), lost, failed]))
    said = capsys.readouterr().out
    for part in (
        "test-7 · score 1 (answer 1, format 1), gold 1",
        "work: 53 → 12 tokens",
        "expected answer: 11",
        "test-8 · no score: TimeoutError: slow",
        "failed: AdapterParseError: no answer",
        "[bold]",
    ):
        assert part in said
    assert "<|im_start|>" not in said
    show(render([make_rollout("test-7", 1.0, "11")], prompts=True))
    assert "<|im_start|>user" in capsys.readouterr().out
