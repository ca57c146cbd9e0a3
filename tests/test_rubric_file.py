"""A rubric as a TOML or YAML file: equal to the Python one, clear where it is wrong, and part of what a study is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import dspy
import pytest
from pydantic import TypeAdapter

from colever.config import SweepConfig
from colever.errors import TaskError
from colever.optimizers.evaluate import Grounds
from colever.optimizers.trials import study_key
from colever.tasks import arithmetic
from colever.tasks.criteria import KINDS
from colever.tasks.criteria.match import Exact
from colever.tasks.load import load_task
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.rubric_file import COMMON, OWN, load_rubric
from colever.tasks.rubric_text import MOST

Run = Callable[..., tuple[int, str, str]]

ANSWER = '[[criterion]]\nname = "answer"\nkind = "exact"\nfield = "answer"\n'
CHECKS = (
    "def near(e, p, s): return 0.5\nLIMIT = 3\nclass Far:\n    def __call__(self, e, p, s): return 0.25\nfar = Far()\n"
)
TASK = """
import dspy
from colever import Criterion, Rubric, Task

def rows(start, count):
    return [dspy.Example(question=str(i), answer=str(i)).with_inputs("question") for i in range(start, start + count)]

class Reply(str):
    pass

def same(e, p, s):
    return p.answer == e.answer

def is_reply(e, p, s):
    return isinstance(p.answer, Reply)

task = Task("echo", lambda: dspy.Predict("question -> answer"), rows(0, 6), rows(10, 4), rows(20, 4),
            Rubric([Criterion("same", same, 0.5, "say it"), Criterion("reply", is_reply, 0.5)]), max_tokens=4)
"""


def written(folder: Path, text: str, name: str = "r.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def said(folder: Path, text: str, name: str = "r.toml", task: object = None) -> str:
    with pytest.raises(TaskError) as caught:
        load_rubric(written(folder, text, name), task)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{folder / name}: ")
    return str(caught.value).removeprefix(f"{folder / name}: ")


class TestTheSame:
    TOML = """
    [[criterion]]
    name = "answer"      # the truth
    kind = "exact"
    field = "answer"
    weight = 0.5
    hint = '''
    [[criterion]] is no table here'''
    [[criterion]]
    name = "near"
    kind = "python"
    check = "checks.py:near"
    weight = 2
    predictor = "solve"
    gate = 0.25
    clip = [0.0, 0.75]
    stage = 1
    form = true
    """
    YAML = """
criterion:
  - {name: answer, kind: exact, field: answer, weight: 5e-1, hint: "    [[criterion]] is no table here"}
  - name: near
    kind: python
    check: checks.py:near
    weight: 2
    predictor: solve
    gate: 25e-2
    clip: [0, 0.75]
    stage: 1
    form: on
"""

    @pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.yaml", YAML), ("r.yml", YAML)])
    def test_as_python_makes_it(self, tmp_path: Path, name: str, text: str) -> None:
        written(tmp_path, CHECKS, "checks.py")
        made = load_rubric(written(tmp_path, text, name))
        near = made.criteria[1].check
        python = Rubric([
            Criterion("answer", Exact("answer"), 0.5, "    [[criterion]] is no table here"),
            Criterion("near", near, 2, "", "solve", gate=0.25, clip=(0.0, 0.75), stage=1, form=True),
        ])  # fmt: skip
        assert made.digest() == python.digest()
        for said in ("7", "8"):
            values = dspy.Example(question="q", answer="7").with_inputs("question"), dspy.Prediction(answer=said), ()
            assert made.score(*values) == python.score(*values)

    def test_a_tasks_own_criteria_with_other_weights(self, tmp_path: Path) -> None:
        task = arithmetic.task
        text = "".join(f'[[criterion]]\nname = "{c.name}"\nkind = "task"\n' for c in task.rubric.criteria)
        assert load_rubric(written(tmp_path, text), task).digest() == task.rubric.digest()
        text = '[[criterion]]\nname = "truth"\nkind = "task"\ncriterion = "first_answer"\nweight = 0.9\nhint = "no"\n'
        made = load_rubric(written(tmp_path, text), task).criteria[0]
        assert (made.name, made.weight, made.hint, made.predictor) == ("truth", 0.9, "no", "solve")
        assert made.check is arithmetic.first_answer

    def test_a_tasks_gate_and_clip_can_be_taken_away(self, tmp_path: Path) -> None:
        gated = Rubric([Criterion("a", Exact("answer"), gate=0.5, clip=(0.1, 0.9))])
        task = dataclasses.replace(arithmetic.task, rubric=gated)
        text = '[[criterion]]\nname = "a"\nkind = "task"\ngate = false\nclip = false\n'
        assert load_rubric(written(tmp_path, text), task).criteria[0] == Criterion("a", Exact("answer"))

    def test_objects_and_modules_are_found_too(self, tmp_path: Path) -> None:
        written(tmp_path, CHECKS, "checks.py")
        text = (
            '[[criterion]]\nname = "far"\nkind = "python"\ncheck = "checks.py:far"\n'
            '[[criterion]]\nname = "team"\nkind = "python"\ncheck = "colever.tasks.routing:team"\n'
        )
        score = load_rubric(written(tmp_path, text)).score(dspy.Example(team="K3"), dspy.Prediction(team="K3"), ())
        assert score.by_criterion == {"far": 0.25, "team": 1.0}

    def test_checks_in_the_tasks_own_file_share_its_classes(self, tmp_path: Path) -> None:
        file = written(tmp_path, TASK, "echo_of_file.py")
        rubric = written(tmp_path, '[[criterion]]\nname = "r"\nkind = "python"\ncheck = "echo_of_file.py:is_reply"\n')
        task = load_task(f"{file}:task", rubric=str(rubric))
        reply = next(c.check for c in load_task(f"{file}:task").rubric.criteria if c.name == "reply").__globals__
        made = load_task(f"{file}:task", rubric=str(rubric)).rubric.criteria[0].check
        assert made.__module__ == "colever_user_task_echo_of_file"
        assert task.rubric.criteria[0].name == "r"
        assert reply["__name__"] == made.__globals__["__name__"]


class TestKinds:
    def test_what_a_file_gives_goes_to_one_place(self) -> None:
        assert not set(KINDS) & set(OWN)
        for name, kind in KINDS.items():
            shared = {f.name for f in dataclasses.fields(kind)} & set(COMMON)
            assert shared <= {"predictor"}, f"{name}: a setting of that name would be taken for the criterion's"

    def test_every_setting_has_a_type_that_can_be_checked(self) -> None:
        for kind in KINDS.values():
            hints = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                TypeAdapter(hints[field.name])

    @pytest.mark.parametrize(("reads", "words", "given"), [("", "tokens", "solve"), ("", "words", "")])
    def test_a_key_that_a_kind_has_too_goes_to_both_where_the_kind_takes_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str, words: str, given: str
    ) -> None:
        @dataclasses.dataclass(frozen=True)
        class Short:
            unit: str
            predictor: str = reads

            def __post_init__(self) -> None:
                if self.unit not in ("tokens", "words") or (self.unit == "words" and self.predictor):
                    raise ValueError(f"unit is {self.unit!r}")

            def __call__(self, e: object, p: object, s: object) -> bool:
                return True

        monkeypatch.setitem(KINDS, "short", Short)
        text = '[[criterion]]\nname = "s"\nkind = "short"\npredictor = "solve"\nunit = '
        (made,) = load_rubric(written(tmp_path, f'{text}"{words}"')).criteria
        assert (made.predictor, made.check) == ("solve", Short(words, given))
        with pytest.raises(TaskError, match="line 5: criterion 's': unit is 'miles'"):
            load_rubric(written(tmp_path, f'{text}"miles"'))

    def test_the_guides_example_is_a_rubric(self, tmp_path: Path) -> None:
        guide = (Path(__file__).parent.parent / "docs" / "rubrics.md").read_text(encoding="utf-8")
        written(tmp_path, "def polite(e, p, s): return 1", "checks.py")
        made = load_rubric(written(tmp_path, guide.split("```toml\n")[1].split("```")[0]), arithmetic.task)
        assert [(c.name, c.weight, c.gate) for c in made.criteria] == [
            ("answer", 0.5, None), ("worked", 0.3, None), ("polite", 0.2, 0.5),
        ]  # fmt: skip


class TestWrong:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"is empty; accepted: \[\[criterion\]\] tables"),
            ("# nothing\n", "no criterion; accepted"),
            ("criterion = 3", "'criterion' is a int; accepted"),
            ("criterion = [3]", "criterion 1 is a int; accepted: a table with a name and a kind"),
            ("[[criteria]]\nname = 'a'", "line 1: unknown key 'criteria'; accepted"),
            ("[[criterion]]\nname = \n", "line 2: not TOML: Invalid value"),
            ("[[criterion]]\nkind = 'exact'", "line 1: name is needed; accepted: a text"),
            ("[[criterion]]\nname = ' '", "line 2: name is ' '; accepted: a text"),
            ("[[criterion]]\nname = 'a'", "line 1: criterion 'a': kind is needed; accepted: a text, one of exact"),
            ("[[criterion]]\nname = 'a'\nkind = 'exakt'", "line 3: .*unknown kind 'exakt', did you mean 'exact'"),
            ("[[criterion]]\nname = 'a'\nkind = 'exact'", "line 1: criterion 'a': field is needed by kind 'exact'"),
            (ANSWER + "wieght = 1", "line 5: criterion 'answer': unknown key 'wieght', did you mean 'weight'"),
            (ANSWER + "weight = nan", "line 5: criterion 'answer': weight is nan; accepted: 0 or a positive number"),
            (ANSWER + "weight = inf", "line 5: .*weight is inf"),
            (ANSWER + "weight = '1'", "line 5: .*weight is '1'"),
            (ANSWER + "weight = 1" + "0" * 400, "line 5: .*weight is 10"),
            (ANSWER + "weight = 1" + "0" * 5000, "cannot be read: "),
            (ANSWER + "gate = 2", "line 5: .*gate is 2; accepted: a number above 0, at most 1"),
            (ANSWER + "clip = [0.9, 0.1]", r"line 5: .*clip is \(0.9, 0.1\); accepted: low and high"),
            (ANSWER + "stage = -1", "line 5: .*stage is -1"),
            (ANSWER + "form = 'yes'", "line 5: .*form is 'yes'; accepted: true or false"),
            (ANSWER + "label = 3", "line 5: .*label is 3; accepted: a valid string"),
            (ANSWER + "label = 2020-01-01", "line 5: .*label is .*, which a file cannot give"),
            (ANSWER + "[criterion.label]\nx = 1", "line 5: .*label is .*; accepted: a valid string"),
            (ANSWER + "weight = 0", "rubric: at least one criterion needs a weight above 0"),
            (ANSWER + ANSWER, "line 6: criterion 'answer' is already there in line 2"),
            (ANSWER + "x = " + "[" * 3000 + "]" * 3000, "cannot be read|not TOML"),
            ("criterion = [{name = 'a', kind = 'exact', field = 3}]", "criterion 'a': field is 3; accepted"),
        ],
    )  # fmt: skip
    def test_toml(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(TaskError, match=message):
            load_rubric(written(tmp_path, text))
        said(tmp_path, text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- name: a", "holds a list; accepted"),
            ("criterion: {name: a}", "'criterion' is a dict; accepted"),
            ("criterion:\n  - name: a\n    kind: [", "line 3: not YAML"),
            ("criterion:\n  - name: a\n    kind: exact\n    field: 3\n", "line 4: .*field is 3; accepted"),
            ("criterion:\n  - name: a\n    name: b\n", "line 3: key 'name' is already in line 2"),
            ("criterion:\n  - &x {name: a}\n  - *x\n", "line 2: anchors and aliases are not accepted"),
            ("criterion:\n  - name: a\n    kind: exact\n    field: a\n    weight: .nan\n", "line 5: .*weight is nan"),
            ("criterion:\n  - name: a\n    kind: exact\n    field: a\n    3: x\n", "line 2: criterion 1 is a dict"),
            ("criterion:\n  - name: !!python/object:os.system a\n", "line 2: not YAML"),
            ("criterion:\n  - name: a\n---\ncriterion: []\n", "line 3: not YAML"),
            ("criterion: " + "[" * 3000, "not YAML|cannot be read"),
            ("a\0b", "not YAML"),
        ],
    )  # fmt: skip
    def test_yaml(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(TaskError, match=message):
            load_rubric(written(tmp_path, text, "r.yaml"))

    @pytest.mark.parametrize(
        ("check", "message"),
        [
            ("''", "check is ''; accepted: module:attr, or file.py:attr beside"),
            ("3", "check is 3; accepted"),
            ("'checks.py'", "check is 'checks.py'; accepted"),
            ("'gone.py:near'", "FileNotFoundError: .*gone.py does not exist"),
            ("'no_such_module_x:near'", "ModuleNotFoundError"),
            ("'checks.py:naer'", "there is no 'naer', did you mean 'near'.*; functions in it: near"),
            ("'checks.py:LIMIT'", "is a int; accepted: a function of"),
            ("'checks.py:Far'", "is a class; accepted: a function of"),
            ("'broken.py:near'", "ZeroDivisionError"),
            ("'exits.py:near'", "SystemExit"),
        ],
    )
    def test_python(self, tmp_path: Path, check: str, message: str) -> None:
        written(tmp_path, CHECKS, "checks.py")
        written(tmp_path, "1 / 0", "broken.py")
        written(tmp_path, "raise SystemExit(3)", "exits.py")
        text = f'[[criterion]]\nname = "near"\nkind = "python"\ncheck = {check}\n'
        with pytest.raises(TaskError, match=f"line 4: criterion 'near': .*{message}"):
            load_rubric(written(tmp_path, text))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('criterion = "anser"', "line 4: .*the task has no criterion 'anser', did you mean 'answer'"),
            ('predictor = "slove"', "line 4: .*predictor 'slove' is none of the program's, did you mean 'solve'"),
        ],
    )
    def test_of_the_task(self, tmp_path: Path, line: str, message: str) -> None:
        file = written(tmp_path, f'[[criterion]]\nname = "answer"\nkind = "task"\n{line}\n')
        with pytest.raises(TaskError, match=message):
            load_rubric(file, arithmetic.task)
        with pytest.raises(TaskError, match=r"line 3: .*no task is given"):
            load_rubric(file)

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ('kind = "exact"\nfield = "slove.answer"\nlabel = "answer"', "field"),
            ('kind = "result_used"\nfield = "answer"\nobservations = "slove.answer"', "observations"),
            ('kind = "judge"\nquestion = "right?"\noutputs = ["answer", "slove.answer"]', "outputs"),
            ('kind = "regex"\npattern = "x"\nfield = "slove.*"', "field"),
        ],
    )
    def test_a_setting_that_reads_of_no_predictor(self, tmp_path: Path, line: str, key: str) -> None:
        """It would find no call of that name in any rollout, and give 0 for ever."""
        file = written(tmp_path, f'[[criterion]]\nname = "answer"\n{line}\n')
        number = 1 + next(i for i, text in enumerate(file.read_text().splitlines()) if text.startswith(f"{key} "))
        said = f"line {number}: criterion 'answer': {key}: predictor 'slove' is none of the program's, did you mean"
        with pytest.raises(TaskError, match=said):
            load_rubric(file, arithmetic.task)
        load_rubric(file)  # of which program it will be is not known
        load_rubric(written(tmp_path, file.read_text().replace("slove", "solve")), arithmetic.task)

    def test_files_that_cannot_be_a_rubric(self, tmp_path: Path) -> None:
        (tmp_path / "latin.toml").write_bytes(b"# ok\n# caf\xe9\n")
        (tmp_path / "huge.toml").write_bytes(b"#" * (MOST + 1))
        (tmp_path / "folder.toml").mkdir()
        for name, message in [
            ("latin.toml", "latin.toml: line 2: not UTF-8; accepted: text in UTF-8"),
            ("huge.toml", "huge.toml: more than 256 KiB; accepted"),
            ("folder.toml", "folder.toml: cannot be read: Is a directory"),
            ("gone.toml", "gone.toml: cannot be read: No such file"),
            ("r.json", r"r.json: not a rubric's file; accepted: one that ends in .toml, .yaml or .yml"),
        ]:
            with pytest.raises(TaskError, match=message):
                load_rubric(tmp_path / name)


class TestDigest:
    def grounds(self, task: object) -> Grounds:
        return Grounds(task.digest(), "engine", {})  # type: ignore[attr-defined]

    def test_another_content_shares_no_stored_round_and_comments_do(self, tmp_path: Path) -> None:
        written(tmp_path, CHECKS, "checks.py")
        texts = [ANSWER, ANSWER + "weight = 0.5\n", ANSWER + 'hint = "x"\n', ANSWER + "gate = 0.5\n",
                 ANSWER + '[[criterion]]\nname = "near"\nkind = "python"\ncheck = "checks.py:near"\n']  # fmt: skip
        tasks = [load_task("arithmetic")]
        tasks += [load_task("arithmetic", rubric=str(written(tmp_path, t, f"{i}.toml"))) for i, t in enumerate(texts)]
        assert len({task.digest() for task in tasks}) == len(tasks)
        keys = {self.grounds(t).evaluation_key(t.base_candidate(), "dev", 0) for t in tasks}
        assert len(keys) == len(tasks)
        elsewhere = tmp_path / "sub"
        elsewhere.mkdir()
        again = load_task("arithmetic", rubric=str(written(elsewhere, "# said otherwise\n" + ANSWER, "other.toml")))
        assert again.digest() == tasks[1].digest()

    def test_the_code_of_its_checks_counts(self, tmp_path: Path) -> None:
        file = written(tmp_path, '[[criterion]]\nname = "near"\nkind = "python"\ncheck = "checks.py:near"\n')
        digests = set()
        for text in (CHECKS, CHECKS.replace("0.5", "0.75"), "import beside\n" + CHECKS, "import beside\n" + CHECKS):
            written(tmp_path, f"X = {len(digests)}\n", "beside.py")
            written(tmp_path, text, "checks.py")
            digests.add(load_task("arithmetic", rubric=str(file)).digest())
        assert len(digests) == 4

    def test_its_place_is_not_what_a_study_is(self) -> None:
        grounds = Grounds("task", "engine", {})
        one, other = (SweepConfig(task="arithmetic", rubric=rubric) for rubric in ("r.toml", "./r.toml"))
        assert study_key(one, grounds) == study_key(other, grounds)
        assert one.study_name == other.study_name == "arithmetic-r-seed-s0"


class TestCommands:
    def test_wrong_files_end_with_2(self, run: Run, tmp_path: Path) -> None:
        file = written(tmp_path, ANSWER + "wieght = 1\n")
        for command in (["eval"], ["optimize"], ["sweep", "--dry-run"]):
            status, out, err = run(*command, "arithmetic", "--rubric", file, *(
                [] if command == ["eval"] else ["--home", tmp_path / "home"]
            ))  # fmt: skip
            assert (status, out) == (2, "")
            assert "r.toml: line 5: criterion 'answer': unknown key 'wieght'" in " ".join(err.split())

    def test_eval_scores_by_the_file(self, run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
        file = written(tmp_path, TASK, "my_task.py")
        rubric = written(tmp_path, ANSWER.replace('"answer"\nkind', '"other"\nkind'))
        status, out, _ = run("eval", f"{file}:task", "--rubric", rubric, "--model", tiny_checkpoint, "--json")
        assert status == 0
        assert list(json.loads(out)["by_criterion"]) == ["other"]

    def test_a_study_continues_and_is_made_again_under_its_file(
        self, run: Run, tmp_path: Path, tiny_checkpoint: Path
    ) -> None:
        task, home = f"{written(tmp_path, TASK, 'my_task.py')}:task", tmp_path / "home"
        rubric = written(tmp_path, ANSWER)
        small = ["--schedule", "p", "--set", "prompt.candidates=1", "--set", "prompt.demos=1", "--json",
                 "--model", tiny_checkpoint, "--home", home]  # fmt: skip
        status, out, err = run("optimize", task, "--rubric", rubric, "--study", "mine", *small)
        assert status == 0, err
        assert f"rubric: {rubric}" in (home / "studies" / "mine" / "config.yaml").read_text()
        spelled = rubric.parent / ".." / rubric.parent.name / rubric.name
        again = run("optimize", task, "--rubric", spelled, "--study", "mine", *small)
        assert (again[0], json.loads(again[1])["arms"]) == (0, json.loads(out)["arms"])
        status, out, err = run("rerun", "mine", "--home", home, "--json")
        assert (status, json.loads(out)["same"]) == (0, True), err
        rounds = len(list((home / "rounds").iterdir()))
        status, _, err = run("optimize", task, "--study", "mine", *small)
        assert (status, "rubric was" in err) == (2, True)
        written(tmp_path, ANSWER + "weight = 0.5\n" + ANSWER.replace('"answer"\nkind', '"other"\nkind'))
        status, _, err = run("optimize", task, "--rubric", rubric, "--study", "mine", *small)
        assert (status, "its task changed since it was started" in " ".join(err.split())) == (2, True)
        status, _, err = run("optimize", task, "--rubric", rubric, "--study", "other", *small)
        assert status == 0, err
        assert len(list((home / "rounds").iterdir())) == 2 * rounds
