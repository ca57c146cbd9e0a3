"""A prompt as text, and what changed between two."""

from __future__ import annotations

from colever.tracking.prompt_text import changes, cost_text, demos_text, diff_text, in_markdown, kind_of, prompt_text
from colever.types import PredictorPrompt

DEMOS = ({"q": "1 + 1", "a": 2, "why": "count\nagain"}, {"q": "2 + 2", "a": 4})


def test_instruction_demos_and_how_many_a_call_shows() -> None:
    assert prompt_text(PredictorPrompt("Add.\nBriefly.")) == "Add.\nBriefly."
    assert prompt_text(PredictorPrompt("Add.", DEMOS, 1)) == (
        "Add.\n\n[demos: 2, nearest 1]\n\n    q: 1 + 1\n    a: 2\n    why: count\n      again\n\n    q: 2 + 2\n    a: 4"
    )
    assert [demos_text(PredictorPrompt("", DEMOS, k)) for k in (0, 1)] == ["2", "2, nearest 1"]


def test_a_demo_more_changes_no_other() -> None:
    before, after = ({"solve": PredictorPrompt("Add.", demos)} for demos in (DEMOS[1:], DEMOS))
    lines = changes(before, after, ("base", "0.1"))["solve"]
    assert [line for line in lines if kind_of(line) == "cut"] == ["-[demos: 1]"]
    assert [line for line in lines if kind_of(line) == "add"] == [
        "+[demos: 2]", "+", "+    q: 1 + 1", "+    a: 2", "+    why: count", "+      again",
    ]  # fmt: skip
    assert lines[:2] == ["--- solve (base)", "+++ solve (0.1)"]


def test_a_long_instruction_is_compared_by_sentences() -> None:
    long = "Read the whole problem first. Then work from left to right, one step at a time. Say only the number."
    before, after = ({"solve": PredictorPrompt(text)} for text in (long, long.replace("only", "just")))
    lines = changes(before, after, ("a", "b"))["solve"]
    assert lines[-2:] == ["-Say only the number.", "+Say just the number."]


def test_what_is_the_same_is_said() -> None:
    same, other = PredictorPrompt("Add."), PredictorPrompt("Check.")
    text = diff_text({"solve": same, "check": same}, {"solve": same, "check": other}, ("a", "b"))
    assert text == "# solve: the same\n--- check (a)\n+++ check (b)\n@@ -1 +1 @@\n-Add.\n+Check.\n"
    nearest = changes({"s": PredictorPrompt("", DEMOS)}, {"s": PredictorPrompt("", DEMOS, 1)}, ("a", "b"))["s"]
    assert nearest[-2 - 3 : -3] == ["-[demos: 2]", "+[demos: 2, nearest 1]"]


def test_what_a_prompt_costs_a_call() -> None:
    assert (
        cost_text("solve", {"solve": 1180.0}, {"solve": 590.0}, "base")
        == "1,180.0 prompt tokens a call (base 590.0, × 2.00)"
    )
    assert cost_text("solve", {"solve": 53.0}, {}) == "53.0 prompt tokens a call"
    assert cost_text("solve", {}, {"solve": 53.0}) == "prompt tokens of a call: not counted"
    text = in_markdown({"solve": PredictorPrompt("```")}, {"solve": 5.0}, {})
    assert text == "## solve\n\n5.0 prompt tokens a call\n\n````text\n```\n````\n"
