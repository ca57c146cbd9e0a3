"""A rubric tried without a model: bad answers that it pays for are found, sound rubrics pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import dspy
import pytest

from colever.errors import InfrastructureError, TaskError
from colever.tasks.bad_answers import bad_answers, labelled_answers
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.rubric_check import RubricCheck, check_rubric
from colever.tasks.task import Task

Run = Callable[..., tuple[int, str, str]]
CITIES = "Paris Rome Oslo Bern Lima Cairo Delhi Quito".split()


def rows(start: int, count: int) -> list[dspy.Example]:
    made = [(f"which city is number {i}?", CITIES[i % len(CITIES)]) for i in range(start, start + count)]
    return [dspy.Example(question=q, answer=a, size=len(a)).with_inputs("question") for q, a in made]


def same(e, p, s=()):
    return p.answer == e.answer


def task_of(*criteria: Criterion, signature: object = "question -> answer", **fields) -> Task:
    gold = fields.pop("gold", same)
    splits = {"train": rows(0, 8), "dev": rows(8, 4), "test": rows(12, 4)}
    return Task("cities", lambda: dspy.Predict(signature), rubric=Rubric(criteria), gold=gold, **splits, **fields)


def checked(*criteria: Criterion, **fields) -> RubricCheck:
    return check_rubric(task_of(*criteria, **fields))


def row(found: RubricCheck, name: str):
    return next(r for r in found.rows if r.name == name)


class TestBundled:
    @pytest.mark.parametrize("name", BUNDLED)
    def test_labelled_answers_get_everything_and_bad_ones_little(self, name: str) -> None:
        found = check_rubric(load_task(name), limit=16)
        assert (found.rows[0].name, found.rows[0].total, found.rows[0].gold) == ("labelled", 1.0, 1.0)
        assert all(r.total <= 0.5 and r.gold == 0.0 for r in found.rows[1:])
        assert {"empty", "in prose", "wrong", "very long", "question", "rubric"} <= {r.name for r in found.rows}
        assert not found.warnings
        assert not found.faults

    def test_texts_are_tried_beside_numbers_that_text_cannot_be(self) -> None:
        found = check_rubric(load_task("arithmetic"), limit=8)
        assert (row(found, "rubric").failures, row(found, "rubric in texts").failures) == (8, 0)
        assert row(found, "rubric in texts").by_criterion["worked"] == 0.0


class TestWarnings:
    def test_a_sound_rubric_has_none(self) -> None:
        found = checked(Criterion("same", same))
        assert [(r.name, r.total) for r in found.rows] == [
            ("labelled", 1.0), ("empty", 0.0), ("in prose", 0.0), ("wrong", 0.0), ("very long", 0.0), ("question", 0.0),
            ("rubric", 0.0),
        ]  # fmt: skip
        assert (found.warnings, found.notes) == ((), ())

    def test_an_answer_that_only_has_to_hold_the_right_one(self) -> None:
        found = checked(Criterion("holds", lambda e, p, s: e.answer in p.answer))
        assert found.warnings == (
            "in prose (the right answer in a wrong format: wrapped in prose) gets 100% of what labelled answers get, "
            "though gold gives it 0: holds 1.00",
            "very long (the right answer, then 3,000 words) gets 100% of what labelled answers get, though gold gives "
            "it 0: holds 1.00",
        )

    def test_words_of_the_question_and_of_the_rubric(self) -> None:
        overlap = Criterion("overlap", lambda e, p, s: "which" in p.answer, 0.7)
        flattered = Criterion("flattered", lambda e, p, s: "be kind" in p.answer, 0, "be kind")
        found = checked(overlap, Criterion("same", same, 0.3), flattered)
        assert [line.split(" (")[0] for line in found.warnings] == [
            "labelled answers get less than 1 in 8 of 8",
            "question",
        ]
        assert row(found, "rubric").by_criterion["flattered"] == 1.0

    def test_what_is_allowed_is_noted_and_most_moves_the_line(self) -> None:
        some = [Criterion("same", same, 0.6), Criterion("word", lambda e, p, s: p.answer in CITIES, 0.4)]
        assert checked(*some).notes == ("wrong gets 0.40 where gold gives 0: word 1.00",)
        warned = check_rubric(task_of(*some), most=0.3).warnings
        assert [line.split(" (")[0] for line in warned] == ["wrong"]

    def test_a_criterion_that_would_end_a_run(self) -> None:
        found = checked(Criterion("same", same), Criterion("first", lambda e, p, s: p.answer[0] == e.answer[0]))
        assert found.warnings == (
            "empty: criterion 'first' raised IndexError: string index out of range; such an answer would end a whole "
            "run",
        )
        assert row(found, "empty").total is None

    def test_gold_that_raises_and_gold_that_is_not_full(self) -> None:
        def broken(e, p):
            return 1 / len(p.answer)

        found = checked(Criterion("same", same), gold=broken)
        assert any("empty: gold of task 'cities' raised ZeroDivisionError" in line for line in found.warnings)
        assert any(line.startswith("gold gives labelled answers 0.2") for line in found.warnings)

    def test_a_criterion_that_never_varies(self) -> None:
        found = checked(Criterion("same", same), Criterion("always", lambda e, p, s: 1, 0))
        assert found.warnings == ("always is 1.00 on all 56 answers that could be read: it tells none of them apart",)

    def test_labelled_answers_that_fall_short(self) -> None:
        found = checked(Criterion("same", same), Criterion("short", lambda e, p, s: len(p.answer) < 5))
        assert found.warnings[0] == "labelled answers get less than 1 in 4 of 8 (0.75 on average): short 0.50"

    def test_a_judge_that_is_down_is_no_finding(self) -> None:
        def down(e, p, s):
            raise InfrastructureError("the judge is down")

        with pytest.raises(InfrastructureError, match="the judge is down"):
            checked(Criterion("judged", down))


class TestFaults:
    def test_a_rubric_that_pays_for_no_right_answer(self) -> None:
        found = checked(Criterion("right", lambda e, p, s: p.answer == e.answer.upper()), Criterion("any", same, 0))
        assert found.faults == (
            "labelled answers get 0, so that this rubric pays for no right answer: right 0.00, any 1.00",
        )
        assert not any("labelled" in line for line in found.warnings)

    def test_a_criterion_or_gold_that_raises_on_a_right_answer(self) -> None:
        found = checked(Criterion("same", same), Criterion("field", lambda e, p, s: p.reply == e.answer), gold=broken)
        assert found.faults == (
            "labelled: criterion 'field' raised AttributeError: 'Prediction' object has no attribute 'reply'; a right "
            "answer would end a whole run",
            "labelled: gold of task 'cities' raised KeyError: 'size in words'; a right answer would end a whole run",
        )
        assert found.rows[0].total is None

    def test_where_labels_leave_a_field_empty_nothing_is_certain(self) -> None:
        unknown = Criterion("reasoned", lambda e, p, s: p.reasoning[0] != "", 1)
        found = checked(unknown, signature="question -> reasoning, answer")
        assert found.faults == ()
        assert any("labelled: criterion 'reasoned' raised IndexError" in line for line in found.warnings)
        shut = Criterion("reasoned", lambda e, p, s: bool(p.reasoning), gate=1.0)
        assert checked(shut, signature="question -> reasoning, answer").faults == ()
        counted = Criterion("count", lambda e, p, s: p.count > 0)
        assert checked(counted, signature="question -> answer, count: int").faults == ()


def broken(e, p):
    return e["size in words"]


class TestAnswers:
    def test_text_where_a_number_is_wanted_is_a_failure_of_the_policy(self) -> None:
        found = checked(
            Criterion("size", lambda e, p, s: p.size == e.size), signature="question -> size: int", gold=None
        )  # fmt: skip
        assert {r.name: r.failures for r in found.rows} == {
            "labelled": 0, "empty": 8, "in prose": 8, "wrong": 0, "very long": 0, "question": 8, "rubric": 8,
        }  # fmt: skip
        assert (row(found, "question").total, row(found, "question").gold) == (0.0, None)

    def test_a_long_answer_is_cut_where_the_task_cuts_it(self) -> None:
        signature = dspy.Signature("question -> note, answer")
        task = task_of(
            Criterion("same", same), signature=signature, max_tokens=50,
            labelled=lambda e: dspy.Prediction(note="ok", answer=e.answer),
        )  # fmt: skip
        made = bad_answers(task, labelled_answers(task, "train").answers)["very long"]
        assert {a.failure for a in made} == {"cut off before answer"}
        swapped = task_of(
            Criterion("same", same), max_tokens=50, labelled=lambda e: dspy.Prediction(answer=e.answer)
        )  # fmt: skip
        made = bad_answers(swapped, labelled_answers(swapped, "train").answers)["very long"]
        assert {len(a.prediction.answer.split()) for a in made} == {50}

    def test_a_criterion_sees_steps_in_words(self) -> None:
        task = task_of(Criterion("same", same))
        step = labelled_answers(task, "train").answers[0].steps[0]
        assert (step.predictor, step.outputs, step.inputs) == (
            "self", {"answer": "Paris"}, {"question": "which city is number 0?"},
        )  # fmt: skip
        assert step.completion.text == "[[ ## answer ## ]]\nParis"
        assert step.completion.lengths == (0, 6)

    def test_one_of_a_few_words_and_lists(self) -> None:
        class Pick(dspy.Signature):
            question: str = dspy.InputField()
            answer: Literal[tuple(CITIES)] = dspy.OutputField()  # type: ignore[valid-type]
            also: list[str] = dspy.OutputField()

        labelled = lambda e: dspy.Prediction(answer=e.answer, also=[e.answer])  # noqa: E731
        found = checked(Criterion("same", same), signature=Pick, labelled=labelled)
        assert row(found, "in prose").failures == row(found, "empty").failures == 8
        assert row(found, "wrong").total == 0.0

    def test_fields_without_a_label_stay_empty_and_that_is_said(self) -> None:
        reasoned = Criterion("reasoned", lambda e, p, s: bool(p.reasoning), 0.1)
        found = checked(Criterion("same", same, 0.9), reasoned, signature="question -> reasoning, answer")
        assert found.warnings[0] == (
            "labelled answers get less than 1 in 8 of 8 (0.90 on average): reasoned 0.00; no label tells reasoning, "
            "which stayed empty: Task(labelled=…) can"
        )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"signature": "question -> reply"}, r"no label has the name of an output field \(reply\): give the"),
            ({"labelled": lambda e: e.nothing}, "labelled of task 'cities' raised AttributeError"),
            ({"labelled": lambda e: {"answer": 1}}, "labelled of task 'cities' returned a dict; accepted: a dspy.Pred"),
        ],
    )  # fmt: skip
    def test_labels_that_tell_nothing(self, fields: dict, message: str) -> None:
        with pytest.raises(TaskError, match=message):
            checked(Criterion("same", same), **fields)

    def test_labelled_is_read_by_no_lever(self) -> None:
        task = task_of(Criterion("same", same))
        assert replace(task, labelled=lambda e: dspy.Prediction(answer=e.answer)).digest() == task.digest()


class TestCommand:
    def test_json_and_table(self, run: Run) -> None:
        status, out, _ = run("rubric", "check", "routing", "--limit", 8, "--json", "--strict")
        found = json.loads(out)
        assert (status, found["task"], found["split"], found["warnings"]) == (0, "routing", "train", [])
        assert found["rows"][0] == {
            "name": "labelled", "what": "the right answer", "answers": 8, "failures": 0, "total": 1.0, "gold": 1.0,
            "by_criterion": dict.fromkeys(["team", "topic", "valid", "consistent", "quoted"], 1.0), "broken": {},
        }  # fmt: skip
        status, out, _ = run("rubric", "check", "lookup", "--split", "three_hops", "--limit", 8)
        assert status == 0
        assert "lookup · three_hops: answers made from 8 examples, no model" in out
        assert "no warnings" in out

    def test_strict_ends_with_1_where_there_is_a_warning(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "lax.toml").write_text(
            '[[criterion]]\nname = "range"\nkind = "task"\ncriterion = "in_range"\nweight = 0.9\n'
            '[[criterion]]\nname = "answer"\nkind = "task"\nweight = 0.1\n'
        )
        lax = ["rubric", "check", "arithmetic", "--limit", 8, "--rubric", tmp_path / "lax.toml"]
        status, out, _ = run(*lax, "--strict")
        assert status == 1
        assert "warning: wrong (a wrong answer in the right format: another example's) gets 90%" in out
        assert run(*lax)[0] == 0

    @pytest.mark.parametrize("more", [(), ("--strict",), ("--json",)], ids=["plain", "strict", "json"])
    def test_what_cannot_work_ends_with_1_and_says_why(self, run: Run, tmp_path: Path, more: tuple[str, ...]) -> None:
        (tmp_path / "never.toml").write_text(
            '[[criterion]]\nname = "answer"\nkind = "exact"\nfield = "answer"\nlabel = "problem"\n'
        )
        status, out, _ = run(
            "rubric", "check", "arithmetic", "--limit", 8, "--rubric", tmp_path / "never.toml", *more
        )  # fmt: skip
        assert status == 1
        said = "labelled answers get 0, so that this rubric pays for no right answer: answer 0.00"
        assert json.loads(out)["faults"] == [said] if more == ("--json",) else f"error: {said}" in out

    def test_wrong_usage_ends_with_2(self, run: Run) -> None:
        status, _, err = run("rubric", "check", "lookup", "--split", "tset")
        assert (status, "accepted: train, dev, test, three_hops" in err) == (2, True)
