"""Criteria ready to use: right, wrong and odd answers by kind. What all have in common: test_criteria_any.py."""

from __future__ import annotations

import json

import dspy
import pytest

from colever.errors import TaskError
from colever.tasks.criteria import KINDS
from colever.types import Completion, Step


def step(text: str = "", predictor: str = "solve", finish: str = "stop", failed: bool = False, **outputs) -> Step:
    ids = tuple(range(len(text.split())))
    completion = Completion(text, (1, 2), ids, tuple(0.0 for _ in ids), finish, "v")
    return Step(predictor, 0, completion, failed, {}, outputs)


def check(kind: str, answer, right=None, steps=(), **settings) -> float:
    """The value of a criterion of ``answer`` on an example with the right one."""
    example = dspy.Example(question="q", answer=right).with_inputs("question")
    return float(KINDS[kind](**settings)(example, dspy.Prediction(answer=answer), steps))


ANSWER = {"field": "answer"}
DEEP = "[" * 50_000


@pytest.mark.parametrize(
    ("answer", "label", "value"),
    [(3, 3, 1), ("3", 3, 0), ("a", "a", 1), ("a ", "a", 0), (None, "a", 0), (["a"], ["a"], 1)],
)
def test_exact(answer, label, value) -> None:
    assert check("exact", answer, label, **ANSWER) == value


@pytest.mark.parametrize(
    ("answer", "label", "settings", "value"),
    [
        ("The  Eiffel Tower!", "eiffel tower", {}, 1),
        ("ﬁve\u200b", "five", {}, 1),
        ("STRASSE", "straße", {}, 1),
        ("a cat", "the cat", {"articles": True}, 0),
        ("Cat", "cat", {"case": True}, 0),
        ("cat.", "cat", {"punctuation": True}, 0),
        ("-5", "5", {}, 0),
        ("\u22125", "-5", {}, 1),
        ("1.5", "15", {}, 0),
        ("x - 5", "x 5", {}, 1),
        ("dog", ["cat", "dog"], {}, 1),
        ("?", "!", {}, 0),
        ("?", "?", {}, 1),
        ("a", "A", {}, 1),
        ("the", "A", {}, 0),
        ("", "?", {}, 0),
        (7, "7", {}, 1),
        (None, "none", {}, 0),
        (["cat"], "cat", {}, 0),
    ],
)
def test_normalized(answer, label, settings, value) -> None:
    assert check("normalized", answer, label, **ANSWER, **settings) == value


@pytest.mark.parametrize(
    ("answer", "label", "settings", "value"),
    [
        (3, 3, {}, 1),
        ("3.0", 3, {}, 1),
        ("it is 1,234.50", 1234.5, {}, 1),
        ("1.234,5", 1234.5, {"decimal_mark": ","}, 1),
        ("1’000’000", 10**6, {}, 1),
        ("$1,200", 1200, {}, 1),
        ("-$5", -5, {}, 1),
        ("€ 5", 5, {}, 1),
        ("40%", 0.4, {}, 1),
        ("40 percent", 40, {"percent": "points"}, 1),
        ("3/4", 0.75, {}, 1),
        ("1 1/2", 1.5, {}, 1),
        ("1½", 1.5, {}, 1),
        ("1/0", 1, {}, 0),
        ("2.5e3", 2500, {}, 1),
        ("2 × 10^3", 2000, {}, 1),
        ("2*10^{-3}", 0.002, {}, 1),
        ("3 million", 3_000_000, {}, 1),
        ("\u22123", -3, {}, 1),
        ("5 or 6", 6, {}, 0),
        ("5 or 6", 6, {"pick": "last"}, 1),
        ("5 or 6", 5, {"pick": "first"}, 1),
        ("72", "She has 48 + 24 = 72 #### 72", {}, 1),
        ("80779853377", 80779853376, {}, 0),
        (0.1 + 0.2, 0.3, {}, 1),
        ("0.333", 1 / 3, {}, 0),
        ("0.333", 1 / 3, {"absolute": 0.001}, 1),
        ("99", 100, {"relative": 0.01}, 1),
        ("98", 100, {"relative": 0.01}, 0),
        ("5000 m", 5, {"unit": "km"}, 1),
        ("5 kilometers", 5, {"unit": "km"}, 1),
        ("5", "5000 m", {"unit": "km"}, 1),
        ("5 kg", 5, {"unit": "km"}, 0),
        ("36 km/h", 10, {"unit": "m/s"}, 1),
        ("1 m^2", "10000 cm²", {"unit": "m2"}, 1),
        ("90 min", 1.5, {"unit": "h"}, 1),
        ("2 furlongs", 402.336, {"unit": "m", "units": ("furlong = 201.168 m",)}, 1),
        ("2 dozens", 24, {"unit": "piece", "units": ("piece = 1", "dozen = 12 piece")}, 1),
        ("5 apples", 5, {}, 1),
        ("1e999", 5, {}, 0),
        ("NaN", 5, {}, 0),
        (float("nan"), 5, {}, 0),
        (float("inf"), 5, {}, 0),
        (True, 1, {}, 0),
        ("9" * 90_000, 5, {}, 0),
        ("", 5, {}, 0),
        (None, 5, {}, 0),
        ("v5", 5, {}, 0),
    ],
)
def test_number(answer, label, settings, value) -> None:
    assert check("number", answer, label, **ANSWER, **settings) == value


PETS = {"field": "answer", "options": ("cat", "black cat", "dog")}


@pytest.mark.parametrize(
    ("answer", "label", "value"),
    [
        ("Dog.", "dog", 1),
        ("C", "dog", 1),
        ("(c)", "dog", 1),
        ("**C**", "dog", 1),
        ("C) dog", "dog", 1),
        ("C) cat", "dog", 0),
        ("Answer: C", "dog", 1),
        ("I think that the answer is C, since it barks", "dog", 1),
        ("the answer is A, or the answer is C", "dog", 0),
        ("so \\boxed{C}", "dog", 1),
        ("it must be a dog", "dog", 1),
        ("it must be a black cat", "black cat", 1),
        ("it must be a black cat", "cat", 0),
        ("a dog or a cat", "dog", 0),
        ("cat black cat dog", "dog", 0),
        ("dog", 2, 1),
        ("dog", "C", 1),
        ("Z", "dog", 0),
        ("", "dog", 0),
        (None, "dog", 0),
        (2, "dog", 0),
    ],
)
def test_choice(answer, label, value) -> None:
    assert check("choice", answer, label, **PETS) == value


def test_choice_of_the_examples_own_options() -> None:
    kind = KINDS["choice"](field="answer", options_from="options")
    example = dspy.Example(question="q", options=["red", "blue"], answer="B").with_inputs("question")
    assert kind(example, dspy.Prediction(answer="blue"), ())
    assert not kind(example, dspy.Prediction(answer="red"), ())
    with pytest.raises(TaskError, match="field 'answer' is 'C'; accepted: one of"):
        kind(example.copy(answer="C"), dspy.Prediction(answer="blue"), ())


@pytest.mark.parametrize(
    ("answer", "settings", "value"),
    [
        ("code K3", {"pattern": r"[A-Z]\d"}, 1),
        ("code K3", {"pattern": r"[A-Z]\d", "mode": "fullmatch"}, 0),
        ("code k3", {"pattern": r"[A-Z]\d", "case": False}, 1),
        ("a\nb", {"pattern": "a.b"}, 0),
        ("a\nb", {"pattern": "a.b", "dotall": True}, 1),
        ("sorry", {"pattern": "sorry", "absent": True}, 0),
        ("fine", {"pattern": "sorry", "absent": True}, 1),
        (None, {"pattern": "sorry", "absent": True}, 0),
        (3, {"pattern": r"\d"}, 1),
        ("ab" * 40, {"pattern": r"(a|ab|b)*[cd]"}, 0),  # backtracks for ever: given up
        ("ab" * 40, {"pattern": r"(a|ab|b)*[cd]", "absent": True}, 0),
    ],
)
def test_regex(answer, settings, value) -> None:
    assert check("regex", answer, **ANSWER, **settings) == value


TAGS = {"tags": ("think", "answer")}


@pytest.mark.parametrize(
    ("text", "settings", "value"),
    [
        ("<think>a < b</think>\n<answer>4</answer>", {}, 1),
        ("<think>a < b</think>\n<answer>4</answer>", {"well_formed": True}, 4 / 5),
        ("<think>a</think>\n<answer>4</answer>", {"well_formed": True}, 1),
        ("<answer>4</answer><think>a</think>", {}, 3 / 4),
        ("<answer>4</answer><think>a</think>", {"order": False}, 1),
        ("so <think>a</think><answer>4</answer>", {}, 3 / 4),
        ("so <think>a</think><answer>4</answer>", {"only": False}, 1),
        ("<think>a</think>4", {}, 1 / 4),
        ("<think>a</think>4", {"partial": False}, 0),
        ("<think>a<answer>4</answer></think>", {}, 0),
        ("<think>a</think><answer>4", {}, 1 / 4),
        ("<think>a</think><answer>4</answer><answer>5</answer>", {}, 1 / 4),
        ("<think></think><answer>4</answer>", {}, 1 / 4),
        ("<think>" * 20_000, {}, 0),
        ("", {}, 0),
    ],
)
def test_xml(text, settings, value) -> None:
    assert check("xml", "", steps=[step(text)], **TAGS, **settings) == pytest.approx(value)
    assert check("xml", text, field="answer", **TAGS, **settings) == pytest.approx(value)


PERSON = json.dumps({
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
})  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "settings", "value"),
    [
        ("[1]", {}, 1),
        ("nothing", {}, 0),
        ("NaN", {}, 0),
        ("1e999", {}, 0),
        ('{"name": "Ada", "age": 36}', {"schema": PERSON}, 1),
        ({"name": "Ada", "age": 36}, {"schema": PERSON}, 1),
        ('{"name": "Ada", "age": -1}', {"schema": PERSON}, 2 / 4),
        ('{"name": "Ada"}', {"schema": PERSON}, 2 / 4),
        ('{"name": "Ada"}', {"schema": PERSON, "partial": False}, 0),
        ('{"name": "Ada", "age": 36, "x": 1}', {"schema": PERSON}, 3 / 4),
        ("[]", {"schema": PERSON}, 1 / 4),
        ('{"a": 1}', {"required": ("a", "b")}, 2 / 3),
        ('```json\n{"a": 1}\n```', {"required": ("a",)}, 1),
        ('here:\n```\n{"a": 1}\n```', {"fence": "required"}, 1),
        ('{"a": 1}', {"fence": "required"}, 0),
        ('```json\n{"a": 1}\n```', {"fence": "refused"}, 0),
        ("```\n1\n```\n```\n2\n```", {}, 0),
        (DEEP, {}, 0),
        ("[" * 20 + "]" * 20, {"schema": '{"items": {"$ref": "#"}}'}, 1),
        ("[" * 900 + "]" * 900, {"schema": '{"items": {"$ref": "#"}}'}, 1 / 2),  # too deep to tell
        ("[" + "1, 2.0, " * 10_000 + "3]", {"schema": '{"uniqueItems": true}', "partial": False}, 0),
        ("[1, true, 2]", {"schema": '{"uniqueItems": true}'}, 1),
        ("9" * 5000, {}, 0),
        (None, {}, 0),
        ({1, 2}, {}, 0),
    ],
)
def test_json(answer, settings, value) -> None:
    assert check("json", answer, **ANSWER, **settings) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("int", [3, "3", "-1,234"], ["3.5", "three", "3 apples", True, None, "1,23", ""]),
        ("float", [3.5, "3.5", "1e5", "3"], ["1e999", "nan", "inf", "x", float("inf"), float("nan"), None]),
        ("bool", [True, "no", "True", "Yes."], ["maybe", 3, None]),
        ("date", ["2024-02-29", "2024-02-29T10:00"], ["2023-02-29", "yesterday", "", None, 3]),
        ("list", [["a"], '["a"]', "a, b", "- a\n- b", "1. a\n2. b"], ["a", "[a", "a,,b", "", None, 3, DEEP]),
        (
            "name",
            ["Ada Lovelace", "Ludwig van Beethoven", "O'Neill", "Émile"],
            ["ada", "Ada 2", "van", "A" * 300, None],
        ),
        ("word", ["cat", "well-known"], ["two words", "3", "", None]),
        ("text", ["x", 3], ["", " \n", None, []]),
    ],
)
def test_answer_type(kind, right, wrong) -> None:
    assert [check("answer_type", a, **ANSWER, type=kind) for a in right] == [1] * len(right)
    assert [check("answer_type", a, **ANSWER, type=kind) for a in wrong] == [0] * len(wrong)


def test_answer_type_of_a_date_in_a_form_of_ones_own() -> None:
    settings = {**ANSWER, "type": "date", "formats": ("%d.%m.%Y",)}
    assert check("answer_type", "29.2.2024", **settings) == 1
    assert check("answer_type", "2024-02-29", **settings) == 0


@pytest.mark.parametrize(
    ("answer", "settings", "value"),
    [
        ("one two", {"high": 3}, 1),
        ("one two three four", {"high": 3}, 2 / 3),
        ("one " * 6, {"high": 3}, 0),
        ("one " * 9, {"high": 3}, 0),
        ("one " * 4, {"high": 3, "fade": 2}, 1 / 2),
        ("one", {"low": 4, "high": 8}, 1 / 4),
        ("", {"low": 4, "high": 8}, 0),
        ("abc", {"high": 3, "unit": "characters"}, 1),
        (["a", "b"], {"high": 2}, 1),
        (None, {"high": 2}, 0),
    ],
)
def test_length(answer, settings, value) -> None:
    assert check("length", answer, **ANSWER, **settings) == pytest.approx(value)


def test_length_in_tokens_and_truncation() -> None:
    steps = [step("a b c", "solve", "length"), step("d", "check")]
    assert check("length", "", steps=steps, high=3, unit="tokens") == pytest.approx(2 / 3)
    assert check("length", "", steps=steps, high=3, unit="tokens", predictor="solve") == 1
    assert check("length", "", steps=steps, high=3, unit="tokens", predictor="other") == 0
    assert (check("truncation", "", steps=steps), check("truncation", "", steps=steps, predictor="check")) == (0, 1)
    untold = Step("solve", 0, Completion("a b c", (), (), (), "stop", "v"))
    with pytest.raises(TaskError, match="tells no tokens; accepted as unit: words, characters"):
        check("length", "", steps=[untold], high=3, unit="tokens")


def test_fields_of_steps() -> None:
    steps = [step("raw", "act", action="find"), step("last", "act", action="done"), step("no", "reply", failed=True)]
    assert check("exact", "", "done", steps, field="act.action", label="answer") == 1
    assert check("regex", "", steps=steps, field="act.*", pattern="last") == 1
    assert check("regex", "", steps=steps, field="*", pattern="no") == 1
    assert check("exact", "", "x", steps, field="reply.answer", label="answer") == 0
    assert check("exact", "", "x", steps, field="never.answer", label="answer") == 0
    with pytest.raises(TaskError, match="predictor 'act' has no output field 'act'; it has: action"):
        check("exact", "", "x", steps, field="act.act", label="answer")
