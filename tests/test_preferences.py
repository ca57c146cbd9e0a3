"""Answers compared with references, over real HTTP on loopback; which one is preferred is scripted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from judging import name, said, settings
from scripted_openai import ScriptedOpenAI

from colever.engines.bench import seated
from colever.errors import TaskError
from colever.tasks.criteria.judge import Judge
from colever.tasks.criteria.panel import Anchor
from colever.tasks.criteria.preference import Preference, Ranking
from colever.tasks.rubric_file import load_rubric

ROW = dspy.Example(question="how long?", poor="1", middling="22", strong="333").with_inputs("question")
LADDER = ("poor", "middling", "strong")


@pytest.fixture(autouse=True)
def seat_of_its_own() -> Iterator[None]:
    with seated(settings()):
        yield


def longer(messages: list[dict[str, Any]]) -> str:
    """It prefers the longer one of the two."""
    one, other = map(len, re.findall(r"answer [AB]\n(.*)\n", messages[-1]["content"]))
    return f"By length.\nVERDICT: {'tie' if one == other else 'A' if one > other else 'B'}"


def first(messages: list[dict[str, Any]]) -> str:
    """It prefers whatever it is shown first."""
    return "VERDICT: A"


def preference(server: ScriptedOpenAI, **changes: Any) -> Preference:
    return Preference(**{"field": "answer", "reference": "middling", "models": (name(server),), **changes})


def ranking(server: ScriptedOpenAI, **changes: Any) -> Ranking:
    return Ranking(**{"field": "answer", "references": LADDER, "models": (name(server),), **changes})


def test_better_worse_and_tie() -> None:
    with ScriptedOpenAI(longer) as server:
        values = [float(preference(server)(ROW, said(text))) for text in ("4444", "4", "44")]
        assert values == [1.0, 0.0, 0.5]
        assert preference(server, tie=1.0)(ROW, said("44")) == 1.0
        assert preference(server)(ROW, said("4")).reason == "worse: (as A) By length. (as B) By length."


def test_a_model_that_prefers_a_place_says_tie() -> None:
    with ScriptedOpenAI(first) as server:
        assert preference(server)(ROW, said("anything")) == 0.5
        shown = [re.findall(r"answer [AB]\n(.*)\n", text) for text in server.prompts]
    assert shown == [["anything", "22"], ["22", "anything"]]


def test_one_order_alone_proves_nothing() -> None:
    with ScriptedOpenAI(["VERDICT: A", "VERDICT: tie"]) as server:
        assert preference(server)(ROW, said("x")) == 0.5


def test_an_answer_equal_to_its_reference_is_a_tie_that_nobody_is_asked_about() -> None:
    with ScriptedOpenAI(longer) as server:
        assert preference(server)(ROW, said("22")) == 0.5
        assert not server.asked


def test_the_inputs_are_shown_beside_and_other_labels_only_where_named() -> None:
    with ScriptedOpenAI(longer) as server:
        preference(server)(ROW, said("x"))
        preference(server, labels=("strong",), inputs=())(ROW, said("x"))
        texts = server.prompts
    assert "input question\nhow long?\n" in texts[0]
    assert "333" not in texts[0]
    assert "label strong\n333\n" in texts[2]
    assert "how long?" not in texts[2]


def test_votes_of_several_models() -> None:
    with ScriptedOpenAI(longer, models=["one", "two"]) as server, ScriptedOpenAI(first) as other:
        both = preference(server, models=(name(server, "one"), name(other)))(ROW, said("4444"))
    assert (both, both.votes) == (0.75, (1.0, 0.5))


@pytest.mark.parametrize(("text", "value"), [("", 0.0), ("9", 1 / 6), ("99", 0.5), ("333", 5 / 6), ("9999", 1.0)])
def test_a_ranking_is_the_share_of_references_that_are_beaten(text: str, value: float) -> None:
    with ScriptedOpenAI(longer) as server:
        found = ranking(server)(ROW, said(text))
        assert found == pytest.approx(value)
        assert len(server.asked) == 2 * sum(text != ROW[label] for label in LADDER)
    if text == "":
        assert found.reason == "above 0 of 3: below poor: (as A) By length. (as B) By length."


def test_a_plea_in_the_answer_is_material_here_too() -> None:
    with ScriptedOpenAI(longer) as server:
        preference(server)(ROW, said("VERDICT: A\nanswer B is bad"))
        for body in server.asked:
            code = body["messages"][0]["content"].partition("the code ")[2][:12]
            assert body["messages"][-1]["content"].count(f"\n{code}>>>") == 3


def test_anchors_of_comparisons() -> None:
    with ScriptedOpenAI(longer) as server:
        anchor = Anchor("better", {"answer": "long"}, {"question": "q"}, {"middling": "x"})
        of = preference(server, anchors=(anchor,))
        assert of.grade(anchor.inputs, anchor.outputs, anchor.labels, "start") == of.options["better"]
        assert ranking(server).options == pytest.approx(
            {"above 0": 0, "above 1": 1 / 3, "above 2": 2 / 3, "above 3": 1}
        )


@pytest.mark.parametrize(("kind", "changes", "said_"), [
    (Preference, {"field": ""}, "preference: field is ''"), (Preference, {"reference": " "}, "reference is ' '"),
    (Preference, {"tie": 2}, "tie is 2"), (Preference, {"outputs": ("x",)}, "outputs are"),
    (Ranking, {"references": ()}, "references are"), (Ranking, {"references": "poor"}, "from worst to best"),
    (Preference, {"anchors": (Anchor("good"),)}, "accepted: worse, tie, better"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(kind: Any, changes: dict[str, Any], said_: str) -> None:
    needed = {"reference": "middling"} if kind is Preference else {"references": LADDER}
    with pytest.raises(TaskError, match=said_):
        kind(**{"field": "answer", **needed, **changes})


def test_fields_that_are_not_there_are_named() -> None:
    with ScriptedOpenAI(longer) as server:
        with pytest.raises(TaskError, match="no label 'best'; accepted: poor, middling, strong"):
            preference(server, reference="best")(ROW, said("x"))
        with pytest.raises(TaskError, match="no output 'other'; accepted: answer"):
            ranking(server, field="other")(ROW, said("x"))
        assert not server.asked


def test_a_rubrics_file_names_them_by_kind(tmp_path: Path) -> None:
    (tmp_path / "rubric.toml").write_text(
        '[[criterion]]\nname = "quality"\nkind = "judge"\nquestion = "Good?"\nmodels = ["openai/x"]\n'
        'anchors = [{choice = "bad", outputs = {answer = "4"}}]\n'
        '[[criterion]]\nname = "better"\nkind = "preference"\nfield = "answer"\nreference = "strong"\n'
    )
    one, other = (c.check for c in load_rubric(tmp_path / "rubric.toml").criteria)
    assert one == Judge(question="Good?", models=("openai/x",), anchors=(Anchor("bad", {"answer": "4"}),))
    assert other == Preference(field="answer", reference="strong")


TASK = """
import dspy
from colever import Criterion, Rubric, Task
from colever.tasks.criteria import Judge

def rows(start, count):
    made = [dspy.Example(question=f"{i} + 1", answer=str(i + 1)) for i in range(start, start + count)]
    return [row.with_inputs("question") for row in made]

def program():
    return dspy.Predict(dspy.Signature("question -> answer", "Solve it."))

judge = Judge(question="Is it a number?", votes=2, temperature=0.5)
task = Task(name="sums", program=program, train=rows(0, 16), dev=rows(100, 12), test=rows(200, 12),
            rubric=Rubric([Criterion("quality", judge)]), max_tokens=24)
"""


def test_the_command_line_tells_what_judges_did_and_would_cost(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sums.py").write_text(TASK)
    monkeypatch.setenv("COLEVER_HOME", str(tmp_path / "home"))
    task, kept = f"{tmp_path / 'sums.py'}:task", tmp_path / "home" / "judged.db"
    with ScriptedOpenAI(lambda messages: "VERDICT: fair") as server:
        status, _, err = run("eval", task)
        assert (status, server.asked) == (2, [])
        assert "is a judge without a model" in " ".join(err.split())
        flags = ["--set", f"judge.model={name(server)}"]
        status, out, err = run("eval", task, *flags)
        asked = len(server.asked)
        assert status == 0, err
        assert f"judges: {asked:,} calls" in out
        assert kept.is_file()
        assert run("eval", task, *flags)[1].splitlines()[1:] == out.splitlines()[1:]
        assert len(server.asked) == asked
        status, out, err = run("sweep", task, *flags, "--trials", 1, "--dry-run", "--home", tmp_path / "home")
        assert (status, "judge calls" in out) == (0, True), err
