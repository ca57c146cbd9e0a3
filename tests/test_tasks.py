"""The bundled tasks prove themselves without a model: scripted completions travel the whole path."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import dspy
import pytest
from dspy import lm15

from colever.engines.seed import words
from colever.errors import TaskError
from colever.optimizers.demos import draw, labelled_demos
from colever.pipelines.rollout import run_rollouts
from colever.tasks import arithmetic, lookup, routing
from colever.tasks.criteria import Called, Exact, Judge
from colever.tasks.load import BUNDLED, check_task, load_task
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task


class Scripted:
    """An engine that answers every call with what ``answer`` makes of the caller's last message."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def __deepcopy__(self, memo):
        return self

    def complete(self, request):
        fields = self.answer(request.messages[-1].parts[0].text)
        text = "\n\n".join(f"[[ ## {k} ## ]]\n{v}" for k, v in fields.items()) + "\n\n[[ ## completed ## ]]"
        return lm15.Response(
            id="1",
            model="scripted",
            message=lm15.Message.assistant([lm15.TextPart(text)]),
            finish_reason="stop",
            usage=lm15.Usage(),
        )


def field(prompt: str, name: str) -> str:
    return prompt.split(f"[[ ## {name} ## ]]\n", 1)[1].split("\n\n", 1)[0]


def arithmetic_answers(prompt: str, right: bool) -> dict[str, object]:
    problem = field(prompt, "problem")
    results = arithmetic.partial_results(problem)
    shown = arithmetic.working(problem)
    value = results[-1] if right else results[-1] + 1
    if "[[ ## work ## ]]\n" in prompt:
        return {"review": shown, "final": value}
    return {"work": shown, "answer": value}


def lookup_answers(prompt: str, right: bool) -> dict[str, object]:
    example = next(e for e in lookup.QUESTIONS if e.question == field(prompt, "question"))
    notes = field(prompt, "notes")
    known = 0 if notes == "none" else len(notes.split("; "))
    if "`[[ ## answer ## ]]`" in prompt:
        return {"answer": example.answer if right else "Kalo" if example.answer != "Kalo" else "Miru"}
    return {"action": "find " + example.facts[known].split(" = ")[0] if known < len(example.facts) else "done"}


def routing_answers(prompt: str, right: bool) -> dict[str, object]:
    if "[[ ## ticket ## ]]" in prompt:
        return {"topic": next(e for e in routing.TICKETS if e.ticket == field(prompt, "ticket")).topic}
    topic, codes = field(prompt, "topic"), routing.CODE_BOOK
    team = codes[topic] if right else codes["billing" if topic != "billing" else "travel"]
    return {"entry": f"{topic} = {team}", "team": team}


ANSWERS = {"arithmetic": arithmetic_answers, "lookup": lookup_answers, "routing": routing_answers}


def run(task: Task, right: bool):
    lm = dspy.LM("scripted/task", engine=Scripted(lambda prompt: ANSWERS[task.name](prompt, right)), cache=False)
    return run_rollouts(
        task.program(), task.examples("dev")[:32], lm=lm, score=task.score, fail=task.fail, concurrency=1
    )


@pytest.mark.parametrize("name", BUNDLED)
class TestBundled:
    def test_right_answer_scores_one_and_wrong_one_less(self, name: str) -> None:
        task = load_task(name)
        assert [(r.failure, r.score.total, r.score.gold) for r in run(task, right=True)] == [(None, 1.0, 1.0)] * 32
        assert all(r.score.total < 0.8 and r.score.gold == 0.0 for r in run(task, right=False))

    def test_labelled_is_what_the_right_answers_make(self, name: str) -> None:
        task = load_task(name)
        assert task.labelled is not None
        made = [task.labelled(example) for _, example in task.examples("dev")[:32]]
        assert [r.outputs for r in run(task, right=True)] == [dict(prediction.items()) for prediction in made]

    def test_splits_are_large_enough_disjoint_and_deterministic(self, name: str) -> None:
        task = load_task(name)
        assert (len(task.train), len(task.dev), len(task.test)) == (256, 256, 512)
        inputs = [repr(e.inputs().toDict()) for s in ("train", "dev", "test") for _, e in task.examples(s)]
        assert len(set(inputs)) == 1024
        module = {"arithmetic": arithmetic, "lookup": lookup, "routing": routing}[name]
        again = {
            "arithmetic": lambda: module.examples(20, 1024, 3),
            "lookup": lambda: module.examples(31, 1024, (1, 2, 2)),
            "routing": lambda: module.examples(40, 1024),
        }[name]()
        assert [e.toDict() for e in again] == [
            e.toDict() for s in ("train", "dev", "test") for _, e in task.examples(s)
        ]

    def test_wordings_are_not_in_the_seed_mixture(self, name: str) -> None:
        groups = [words.ARITHMETIC, words.REVIEW, words.AGENT, words.TOPIC, words.EXTRACT]
        known = {w for g in groups for wordings in g.values() for w in wordings} | set(words.REPLY)
        known |= {w for templates in words.COMPOSED.values() for t in templates for w in words.expand(t)}
        task = load_task(name)
        offered = [w for wordings in task.instructions.values() for w in wordings]
        offered += [p.instructions for p in task.base_candidate().prompts.values()]
        assert not [w for w in offered if any(k in w for k in known)]

    def test_task_file_is_short(self, name: str) -> None:
        module = {"arithmetic": arithmetic, "lookup": lookup, "routing": routing}[name]
        with open(module.__file__, encoding="utf-8") as file:
            assert len(file.readlines()) < 140

    def test_digest_follows_content(self, name: str) -> None:
        task = load_task(name)
        changed = Task(**{**vars(task), "dev": list(task.dev)[:-1]})
        assert task.digest() == load_task(name).digest() != changed.digest()


def test_routings_demos_can_hold_the_whole_code_book() -> None:
    pool = labelled_demos(routing.task.program(), routing.task.train)
    book = {f"{topic} = {team}" for topic, team in routing.CODE_BOOK.items()}
    assert {demo["entry"] for demo in draw(pool["route"], ["entry", "team"], len(book), Random(0))} == book


def test_routing_pairs_are_unknown_to_the_seed_mixture() -> None:
    assert not set(routing.CODE_BOOK) & set(words.KEYS)
    assert not {"ticket", "entry", "team"} & {
        *words.FIELD_NAMES,
        *words.LINES,
        *words.KEYS,
        *(n for pair in words.MAPPING_FIELDS for n in pair),
    }
    assert not set(routing.ONE + routing.TWO) & {t.replace("{a}", "{b}") for t in words.TEXT_ONE} | set(
        words.TEXT_TWO
    ) & set(routing.TWO)


class TestRubric:
    example, prediction = dspy.Example(a=1), dspy.Prediction(a=1)

    def test_weighted_mean_and_watched(self) -> None:
        rubric = Rubric(
            [
                Criterion("one", lambda *_: True, 3),
                Criterion("two", lambda *_: 0.5, 1, "half"),
                Criterion("seen", lambda *_: 0, 0),
            ]
        )
        score = rubric.score(self.example, self.prediction, ())
        assert score.total == pytest.approx(0.875)
        assert score.by_criterion == {"one": 1.0, "two": 0.5, "seen": 0.0}
        assert score.feedback == "two 0.50 (half)"

    @pytest.mark.parametrize("value", [2.0, -0.1, float("nan")])
    def test_out_of_range_names_the_criterion(self, value: float) -> None:
        with pytest.raises(TaskError, match=r"criterion 'bad' returned .*accepted: a number in \[0, 1\]"):
            Rubric([Criterion("bad", lambda *_: value)]).score(self.example, self.prediction, ())

    def test_raising_criterion_is_named(self) -> None:
        with pytest.raises(TaskError, match="criterion 'bad' raised KeyError"):
            Rubric([Criterion("bad", lambda e, *_: e["nothing"])]).score(self.example, self.prediction, ())

    @pytest.mark.parametrize(
        "criteria",
        [[], [Criterion("a", bool), Criterion("a", bool)], [Criterion("a", bool, -1)], [Criterion("a", bool, 0)]],
    )
    def test_bad_rubrics(self, criteria) -> None:
        with pytest.raises(TaskError):
            Rubric(criteria)

    def test_digest_sees_code_and_weights(self) -> None:
        digests = {
            Rubric([c]).digest()
            for c in (Criterion("a", lambda *_: 1), Criterion("a", lambda *_: 0), Criterion("a", lambda *_: 1, 2))
        }
        assert len(digests) == 3

    def test_feedback_blames_no_predictor_for_another(self) -> None:
        rubric = Rubric([
            Criterion("answer", lambda e, p, s: False, 2, "the answer is wrong"),
            Criterion("found", lambda e, p, s: p.found, 1, "look up every fact", "act"),
            Criterion("short", lambda e, p, s: p.short, 1, "say one name", "reply"),
        ])  # fmt: skip

        def said(predictor: str, **fields: bool) -> str:
            prediction = dspy.Prediction(**fields)
            return rubric.feedback(rubric.score(dspy.Example(), prediction, ()), predictor)

        assert said("act", found=False, short=True) == (
            "score 0.25. this step: found 0.00 (look up every fact). the whole run: answer 0.00 (the answer is wrong)"
        )
        assert said("reply", found=False, short=True) == (
            "score 0.25. another step fell short; nothing is known against this one"
        )
        assert said("reply", found=True, short=True) == "score 0.50. the whole run: answer 0.00 (the answer is wrong)"
        assert "look up" not in said("reply", found=False, short=False)
        assert "say one name" in said("reply", found=False, short=False)

    def test_feedback_where_nothing_fell_short(self) -> None:
        rubric = Rubric([Criterion("answer", lambda e, p, s: True)])
        score = rubric.score(dspy.Example(), dspy.Prediction(), ())
        assert rubric.feedback(score, "any") == "score 1.00. nothing fell short"

    def test_whom_a_criterion_speaks_of_is_in_the_digest(self) -> None:
        one, other = (Rubric([Criterion("a", always, predictor=name)]) for name in ("solve", "check"))
        assert one.digest() != other.digest()


GOOD = """
from random import Random

import dspy
from colever import Criterion, Rubric, Task
rows = [dspy.Example(q=str(i), a=str(i)).with_inputs("q") for i in range(12)]
def build(): return dspy.Predict("q -> a")
task = Task("mine", build, rows[:4], rows[4:8], rows[8:], Rubric([Criterion("a", lambda e, p, s: e.a == p.a)]))
"""


def always(*_: object) -> bool:
    return True


class TestLoad:
    def write(self, tmp_path, text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:task"

    def test_users_file(self, tmp_path) -> None:
        assert load_task(self.write(tmp_path, GOOD)).name == "mine"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("rows[4:8]", "rows[4:5]"), "split 'dev' of task 'mine' has 1 example"),
            (("rows[4:8]", "rows[3:8]"), "is also in split 'train'"),
            (('dspy.Predict("q -> a")', "dspy.Module()"), "no predictors"),
            (('dspy.Predict("q -> a")', "3"), "returns a int"),
            (('dspy.Predict("q -> a")', "1 / 0"), "raised ZeroDivisionError"),
            (("import dspy", "import dspyy"), "mine.py raised ModuleNotFoundError"),
            (('.with_inputs("q")', ""), "is not a dspy.Example with inputs"),
            (
                ("a=str(i))", "a=str(i), also={'a'})"),
                "row 'train-0' of split 'train' of task 'mine': field 'also' is not JSON: .*set.*; accepted: text",
            ),
            (("rows[4:8]", "['a', 'b']"), "split 'dev' of task 'mine' is not a list of dspy.Example"),
            (("task = Task", "other = Task"), "has no 'task'; tasks in it: other"),
            (("task = Task(", "task = dict(name="), "raised TypeError|SyntaxError"),
        ],
    )
    def test_bad_files(self, tmp_path, change, message) -> None:
        with pytest.raises(TaskError, match=message):
            load_task(self.write(tmp_path, GOOD.replace(*change)))

    def test_digest_follows_what_the_code_calls(self, tmp_path) -> None:
        text = GOOD.replace("lambda e, p, s: e.a == p.a", "same") + "\n"
        text = text.replace(
            "def build()", "def same(e, p, s): return close(e.a, p.a)\ndef close(a, b): return a == b\ndef build()"
        )
        before = load_task(self.write(tmp_path, text)).digest()
        assert load_task(self.write(tmp_path, text)).digest() == before
        assert load_task(self.write(tmp_path, text.replace("a == b", "a != b"))).digest() != before

    def test_a_file_that_exits_is_named(self, tmp_path) -> None:
        with pytest.raises(TaskError, match=r"mine\.py raised SystemExit"):
            load_task(self.write(tmp_path, "import sys; sys.exit(3)"))

    def test_unknown_name_and_missing_file(self, tmp_path) -> None:
        with pytest.raises(TaskError, match="unknown task 'routin'; accepted: arithmetic, lookup, routing"):
            load_task("routin")
        with pytest.raises(TaskError, match="does not exist"):
            load_task(str(tmp_path / "no.py:task"))

    def test_wordings_for_unknown_predictor(self) -> None:
        task = Task(**{**vars(load_task("routing")), "instructions": {"raed": ["x"]}})
        with pytest.raises(TaskError, match="raed"):
            check_task(task)

    @pytest.mark.parametrize("split", ["train", "dev", "test"])
    def test_a_watched_split_that_would_hide_a_real_one(self, split: str) -> None:
        routing_task = load_task("routing")
        with pytest.raises(
            TaskError, match=f"'{split}' in watched would hide .*accepted: any name but train, dev, test"
        ):
            Task(**{**vars(routing_task), "watched": {split: routing_task.train}})


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (Criterion("a", always, predictor="slove"), "predictor names the predictor 'slove'"),
        (Criterion("a", Called(predictor="slove")), "predictor names the predictor 'slove'"),
        (Criterion("a", Exact("slove.answer", "answer")), "field names the predictor 'slove'"),
        (Criterion("a", Judge(question="right?", outputs=("slove.answer",))), "outputs names the predictor 'slove'"),
    ],
)
def test_a_criterion_that_names_no_predictor_of_the_program(criterion: Criterion, said: str) -> None:
    task = replace(load_task("arithmetic"), rubric=Rubric([criterion]))
    with pytest.raises(TaskError, match=f"criterion 'a' of task 'arithmetic': {said}, .*accepted: solve, check"):
        check_task(task)
    check_task(replace(task, rubric=Rubric([Criterion("a", Exact("solve.answer", "answer"), predictor="solve")])))
