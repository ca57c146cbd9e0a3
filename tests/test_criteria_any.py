"""What all criteria ready to use have in common: no answer breaks one, settings are data, the page lists them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from random import Random

import dspy
import pytest

from colever.errors import TaskError
from colever.tasks.criteria import KINDS
from colever.tasks.criteria.page import facts_of, page
from colever.tasks.criteria.settings import kind_name
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Completion, Step

PAGE = Path(__file__).parent.parent / "docs" / "criteria.md"
ANSWER = {"field": "answer"}
SETTINGS: dict[str, list[dict]] = {
    "exact": [ANSWER, {"field": "act.*", "label": "answer"}],
    "normalized": [ANSWER, {**ANSWER, "case": True, "punctuation": True, "articles": True}],
    "number": [{**ANSWER, "label": "number", "pick": "last"},
               {**ANSWER, "label": "number", "unit": "km", "relative": 0.1},
               {**ANSWER, "label": "number", "decimal_mark": ",", "percent": "points", "absolute": 1.0}],
    "choice": [{**ANSWER, "label": "letter", "options": ("yes", "no")},
               {"field": "*", "label": "letter", "options_from": "passages", "letters": False}],
    "regex": [{**ANSWER, "pattern": r"^(\w+\s?)*$"}, {**ANSWER, "pattern": "a", "absent": True, "dotall": True}],
    "xml": [{"tags": ("think", "answer"), "well_formed": True}, {"tags": ("a",), **ANSWER, "partial": False}],
    "json": [{**ANSWER, "required": ("a",)},
             {**ANSWER, "schema": '{"type": "array", "uniqueItems": true, "items": {"multipleOf": 0.1}}'},
             {**ANSWER, "schema": '{"patternProperties": {"^(a|aa)+$": {"type": "string"}}}', "fence": "required"}],
    "answer_type": [{**ANSWER, "type": t} for t in ("int", "float", "bool", "date", "list", "name", "word", "text")]
    + [{**ANSWER, "type": "date", "formats": ("%d/%m/%Y", "%c")}],
    "length": [{**ANSWER, "high": 10, "low": 2}, {"high": 3, "unit": "tokens"},
               {"field": "*", "high": 9, "unit": "characters"}],
    "truncation": [{}, {"predictor": "act"}],
    "called": [{}, {"tool": "answer", "least": 2, "most": 3, "predictor": "act"}],
    "arguments_valid": [{"tools": '{"answer": ["answer"]}'},
                        {"tools": '{"answer": {"minProperties": 1}}', "empty": 1.0},
                        {"tools": '{"yes": []}', "predictor": "act"}],
    "result_used": [ANSWER, {**ANSWER, "observations": "passages", "letters": 1}],
    "citation": [ANSWER, {**ANSWER, "measure": "f1", "gold": "gold"},
                 {**ANSWER, "measure": "recall", "gold": "items"}],
    "set_f1": [{**ANSWER, "label": "items"},
               {**ANSWER, "label": "items", "measure": "exact", "normalize": False}],
    "math": [{**ANSWER, "label": "formula", "seconds": 1}],
    "similarity": [ANSWER, {**ANSWER, "method": "characters", "floor": 0.2}],
}  # fmt: skip
# A process for every answer (tests/test_sandbox_cheats.py), or a model that is asked (tests/test_judges.py).
ELSEWHERE = {"unit_tests", "judge", "preference", "ranking"}
CASES = [(kind, settings) for kind, several in SETTINGS.items() for settings in several]
PIECES = [
    "", " ", "answer", "\x00", "\x1b[31m", "\ud800", "\U0010ffff", "\u202e", "½", "²", "٣", "−", "1e999",
    "-1e-999",
    "NaN",
    "Infinity", "9" * 5000, "1/0", "0/0", "1,,2", "1.2.3", "%", "$", "[", "]", "{", '{"a":', '"', "\\",
    "\\frac{1}{0}",
    "\\boxed{", "\\boxed{" * 50, "9^9^9^9^9", "1000000!", "<think>", "</think>", "<answer>", "</answer>",
    "<!DOCTYPE a [",
    '<!ENTITY a "b">', "&a;", "```json\n", "\n```", "[1]", "[2-999999999]", "[0]", "[-1]", "(B)", "B", "yes",
    "no", "km",
    "5 km", "2024-02-30", "\n- ", "a, b", "True", "None", "\r\n", "ﬁ", "İ", "ß", "👩‍👩‍👧",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]  # fmt: skip
deep: object = "x"
for _ in range(5000):
    deep = [deep]
VALUES = [
    None, True, False, 0, -1, 3.5, 1e308, float("nan"), float("inf"), -float("inf"), 10**5000, b"bytes", object(),
    {1, 2},
    (),
    [], {}, [None], ["a", 1, None, float("nan")], {"a": {"b": [1e400]}}, {1: 2}, deep, "x" * 200_000, "[" * 99_000,
    "{\"a\":" * 20_000, "1 " * 49_000, "a," * 49_000, "<think>" * 14_000, "[1] " * 24_000, "(" * 99_000,
    "\\boxed{" * 9_000,
    "- a\n" * 24_000, "1/" * 49_000, "9" * 99_000, "1,234" * 19_000, "a b " * 24_000, "the answer is " * 7_000,
    "\\boxed{" + " " * 99_000, "```json\n" + " " * 99_000, "a```\n" * 19_000, "<think" + " " * 99_000,
    "1" + " " * 99_000,
    "[" + "{}," * 30_000 + "{}]", "[1-99]" * 16_000, "Answer" + ":" * 99_000, "½" * 33_000, "- " * 49_000,
    "\n" * 99_999,
]  # fmt: skip


def nasty(rng: Random) -> object:
    """A value that a model could write, or a parser make of it."""
    if rng.random() < 0.15:
        return rng.choice(VALUES[:24])
    text = "".join(rng.choice(PIECES) + rng.choice(["", "", " ", "\n"]) for _ in range(rng.randint(0, 12)))
    return rng.choice([text, text, text, [text], {text: text}, [text, text]])


def steps_of(value: object) -> list[Step]:
    """A call as ReAct's and one as a chat model's, with the value in every place."""
    text = value if isinstance(value, str) else "x"
    cut = Completion(text, (1,), (2,), (-0.1,), "length", "v")
    called = {"next_tool_name": value, "next_tool_args": value, "next_thought": text, "tool_calls": value}
    return [Step("act", 0, cut, False, {"question": text}, called), Step("act", 1, cut, True), Step("say", 0, cut)]


def example_of() -> dspy.Example:
    return dspy.Example(
        question="how far is it?", answer="it is 5 km", number=5, letter="B", formula="1/2", items=["a", "b"],
        passages=["the first", "the second"], gold=[1],
    ).with_inputs("question")  # fmt: skip


def prediction_of(value: object) -> dspy.Prediction:
    trajectory = {"tool_name_0": value, "tool_args_0": value, "observation_0": value}
    return dspy.Prediction(answer=value, passages=value, trajectory=trajectory)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_no_answer_breaks_a_criterion(kind: str, settings: dict) -> None:
    criterion, rng = KINDS[kind](**settings), Random(7)
    for value in [*VALUES, *(nasty(rng) for _ in range(300))]:
        got = float(criterion(example_of(), prediction_of(value), steps_of(value)))
        assert math.isfinite(got)
        assert 0 <= got <= 1


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_settings_are_json(kind: str, settings: dict) -> None:
    criterion = KINDS[kind](**settings)
    again = KINDS[kind](**json.loads(json.dumps(dataclasses.asdict(criterion))))
    assert again == criterion
    assert hash(again) == hash(criterion)


def digest(kind: str, settings: dict) -> str:
    return Rubric([Criterion("c", KINDS[kind](**settings))]).digest()


def test_settings_are_in_the_digest_and_use_is_not() -> None:
    digests = [digest(kind, settings) for kind, settings in CASES]
    assert len(set(digests)) == len(CASES)
    assert digests == [digest(kind, settings) for kind, settings in CASES]
    for kind, settings in CASES:
        rubric = Rubric([Criterion("c", KINDS[kind](**settings))])
        before = rubric.digest()
        rubric.score(example_of(), prediction_of("5"), steps_of("5"))
        assert rubric.digest() == before


def test_every_kind_is_tried_here_and_named_after_its_class() -> None:
    assert set(SETTINGS) | ELSEWHERE == set(KINDS)
    assert {kind: kind_name(criterion) for kind, criterion in KINDS.items()} == {kind: kind for kind in KINDS}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_docstring_says_range_reads_and_cost(kind: str) -> None:
    assert set(facts_of(KINDS[kind])) == {"Range", "Reads", "Cost"}
    assert KINDS[kind].__dataclass_params__.frozen


@pytest.mark.parametrize("kind", sorted(k for k, several in SETTINGS.items() if several[0].get("field") == "answer"))
def test_a_field_that_is_not_there_is_named_with_those_that_are(kind: str) -> None:
    criterion = KINDS[kind](**{**SETTINGS[kind][0], "field": "anser"})
    with pytest.raises(TaskError, match="the prediction has no field 'anser'; it has: answer, passages, trajectory"):
        criterion(example_of(), prediction_of("x"), steps_of("x"))


def test_a_label_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(TaskError, match="the example has no field 'anser'; it has: question, answer"):
        KINDS["exact"](field="answer", label="anser")(example_of(), prediction_of("x"), ())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("exact", {"field": ""}, "exact: field is ''; accepted: anything but an empty one"),
        ("exact", {"field": 3}, "exact: field is 3; accepted: text"),
        ("normalized", {**ANSWER, "case": 1}, "normalized: case is 1; accepted: true or false"),
        ("number", {**ANSWER, "absolute": -1}, "number: absolute is -1.0; accepted: 0 or a positive number"),
        ("number", {**ANSWER, "relative": float("nan")}, "number: relative is nan; accepted: a finite number"),
        ("number", {**ANSWER, "pick": "best"}, "number: pick is 'best'; accepted: only, last, first"),
        ("number", {**ANSWER, "unit": "blob"}, "number: unit is 'blob'; accepted: a unit such as km"),
        ("number", {**ANSWER, "units": ("a b c",)}, "number: units is .*accepted: lines like"),
        ("choice", ANSWER, "choice: options is .*accepted: at least two options, or options_from"),
        ("choice", {**ANSWER, "options": ("a", "A")}, "choice: options is .*accepted: at least two that differ"),
        ("regex", {**ANSWER, "pattern": "("}, r"regex: pattern is '\('; accepted: a regular expression \(missing \)"),
        ("xml", {"tags": ()}, r"xml: tags is \(\); accepted: anything but an empty one"),
        ("xml", {"tags": ("a b",)}, "xml: tags is .*accepted: names of tags that differ"),
        ("json", {**ANSWER, "schema": "{"}, r"json: schema is '\{'; accepted: a JSON schema .*\(it is not JSON\)"),
        ("json", {**ANSWER, "schema": '{"type": 3}'}, "json: schema is .*accepted: a JSON schema"),
        ("json", {**ANSWER, "schema": '{"$ref": "#/x"}'}, "json: schema is .*PointerToNowhere"),
        ("json", {**ANSWER, "schema": '{"$ref": "#"}'}, "json: schema is .*RecursionError"),
        ("json", {**ANSWER, "schema": '{"items": {"$ref": "http://x"}}'}, "only references into the schema itself"),
        ("json", {**ANSWER, "schema": '{"pattern": "("}'}, "json: schema is .*is not a 'regex'"),
        (
            "answer_type",
            {**ANSWER, "type": "date", "formats": ("x",)},
            "answer_type: formats is .*accepted: formats of",
        ),
        ("length", {**ANSWER, "high": 0}, "length: high is 0; accepted: a whole number of at least 1"),
        ("length", {"high": 3}, "length: field is ''; accepted: anything but an empty one"),
        ("called", {"least": 3, "most": 2}, "called: most is 2; accepted: 0 for no limit, or at least 3"),
        ("called", {"least": 0}, "called: least is 0; accepted: at least 1 where there is no most"),
        ("arguments_valid", {"tools": "[]"}, r"arguments_valid: tools is '\[\]'; accepted: JSON text"),
        ("arguments_valid", {"tools": '{"a": {"type": 3}}'}, "arguments_valid: tools is .*accepted: JSON text"),
        ("arguments_valid", {"tools": '{"a": []}', "empty": 2}, r"empty is 2.0; accepted: a number in \[0, 1\]"),
        ("citation", {**ANSWER, "measure": "f1"}, "citation: gold is ''; accepted: a field of the example"),
        ("citation", {**ANSWER, "gold": "gold"}, "citation: gold is 'gold'; accepted: .*none with exist"),
        ("set_f1", {**ANSWER, "delimiter": ""}, "set_f1: delimiter is ''; accepted: anything but"),
        ("similarity", {**ANSWER, "floor": 1.0}, "similarity: floor is 1.0; accepted: a number below 1"),
        ("similarity", {**ANSWER, "method": "model"}, "similarity: model is ''; accepted: a checkpoint's folder"),
        ("similarity", {**ANSWER, "method": "model", "model": "/no"}, "similarity: model is '/no'; accepted: a folder"),
        ("length", {**ANSWER, "high": 3, "unit": "tokens"}, "length: field is 'answer'; accepted: none"),
    ],
)
def test_settings_that_are_refused(kind: str, settings: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        KINDS[kind](**settings)


def test_the_page_is_what_the_classes_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m colever.tasks.criteria.page docs/criteria.md"
