"""``colever show``: a stored study's prompts by the names of its rounds, what they cost and what changed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from test_side_by_side import study
from toy import GOOD

from colever import cli
from colever.errors import UsageError
from colever.optimizers.named_rounds import prompts_of
from colever.optimizers.study import StudyFolder
from colever.reported import NamedPrompts
from colever.tracking.prompts import render, to_json
from colever.types import Candidate, PredictorPrompt, Weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return study(tmp_path_factory.mktemp("home"))


def said(shown: NamedPrompts, other: NamedPrompts | None, **options: object) -> str:
    console = Console(width=200, highlight=False, **options)  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(render(shown, other))
    return captured.get()


def test_a_round_is_compared_with_its_parent_and_the_winner_with_base(folder: StudyFolder) -> None:
    for which, against in (("0.1", "base"), ("1.1", "base"), ("1.2", "1.1"), ("winner", "base")):
        shown, other = prompts_of(folder, which)
        assert other is not None
        assert (shown.name, other.name) == (which, against)
    assert prompts_of(folder, "base")[1] is None
    shown, other = prompts_of(folder, "base", "1.2")
    assert other is not None
    assert (shown.name, other.name) == ("base", "1.2")


def test_a_parent_that_was_not_kept_is_none(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = StudyFolder.trials

    def declined(self: StudyFolder, state: object) -> list[object]:
        first, second = trials(self, state)  # type: ignore[arg-type]
        rounds = (replace(second.rounds[0], accepted=False), second.rounds[1])
        return [first, replace(second, rounds=rounds)]

    monkeypatch.setattr(StudyFolder, "trials", declined)
    other = prompts_of(folder, "1.2")[1]
    assert other is not None
    assert other.name == "base"


@pytest.mark.parametrize("against", ["", "7.1"])
def test_a_round_that_there_is_not_is_said(folder: StudyFolder, against: str) -> None:
    with pytest.raises(UsageError, match=r"round '7.1': accepted: 0.1, 1.1, 1.2"):
        prompts_of(folder, "base" if against else "7.1", against)
    with pytest.raises(UsageError, match="has nothing to show yet; run its sweep"):
        prompts_of(StudyFolder(folder.home, "gone"), "base")


def test_the_command_prints_prompts_and_the_diff_plain_where_it_is_piped(
    folder: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def colever(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["colever", "show", "toy", *arguments, "--home", str(folder.home)])
        with pytest.raises(SystemExit):
            cli.main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    out, _ = colever("0.1")
    assert out.startswith(f"{folder.name} · 0.1 · candidate ")
    assert "dev score 40.0 % → 56.7 %, kept" in out
    assert out.endswith(
        f"What changed from base to 0.1\n--- solve (base)\n+++ solve (0.1)\n@@ -1 +1 @@\n-Solve it.\n+{GOOD}\n"
    )
    out, _ = colever("1.2")
    assert "solve: the same\nThe weights differ too." in out
    data = json.loads(colever("winner", "--json")[0])
    assert data["prompts"]["solve"]["instructions"] == GOOD
    assert data["against"]["round"] == "base"
    assert data["against"]["diff"]["solve"].endswith(f"-Solve it.\n+{GOOD}")
    assert json.loads(colever("base", "--json")[0])["against"] is None
    assert "round 'x': accepted: base, winner, or TRIAL.ROUND, here 0.1" in colever("x")[1]


def named(name: str, prompt: PredictorPrompt, tokens: float, weights: Weights | None = None) -> NamedPrompts:
    candidate = Candidate({"solve": prompt}, weights or Weights())
    return NamedPrompts("study", name, candidate, "base", {"solve": tokens})


def test_tokens_nearest_demos_and_colours_are_shown_and_data_is_no_markup() -> None:
    base = named("base", PredictorPrompt("Solve."), 50.0)
    shown = named("0.1", PredictorPrompt("[bold]Solve.[/]", ({"q": "1", "a": "2"},) * 3, 2), 175.0)
    text = said(shown, base)
    assert "solve · demos 3, nearest 2 · 175.0 prompt tokens a call (base 50.0, × 3.50)" in text
    assert "[bold]Solve.[/]" in text
    assert "\x1b" not in text
    coloured = said(shown, base, force_terminal=True, color_system="standard")
    assert "\x1b[32m+[bold]Solve.[/]\x1b[0m" in coloured
    assert "\x1b[31m-Solve.\x1b[0m" in coloured
    data = to_json(shown, base)
    assert data["prompts"]["solve"] == {
        "instructions": "[bold]Solve.[/]", "demos": [{"q": "1", "a": "2"}] * 3, "nearest": 2, "prompt_tokens": 175.0,
    }  # fmt: skip
    assert data["against"]["prompt_tokens"] == {"solve": 50.0}
    json.dumps(data)


def test_long_lines_are_whole_where_they_are_piped(capsys: pytest.CaptureFixture[str]) -> None:
    from colever.console import show

    long = "word " * 60
    show(render(named("0.1", PredictorPrompt(long), 5.0), None), whole_lines=True)
    assert long.strip() in capsys.readouterr().out


def test_a_study_whose_tokens_were_not_counted_says_so(folder: StudyFolder) -> None:
    shown, _ = prompts_of(folder, "base")
    assert dict(shown.prompt_tokens) == {}, "the toy engine has no tokens"
    assert "prompt tokens of a call: not counted" in said(shown, None)


def test_names_between_colons_are_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    from colever.console import fail, show

    fail("prompt.way=my.py:x: refused")
    show("my.py:x: shown")
    shown = capsys.readouterr()
    assert "my.py:x: refused" in shown.err
    assert "my.py:x: shown" in shown.out
