"""A task's digest: equal in every process and at every place, other where data or code changed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import dspy
import pytest

from colever.errors import TaskError
from colever.tasks.description import describe
from colever.tasks.load import check_task, load_task
from colever.tasks.source import source_digest
from colever.tasks.task import Task

# A task file that reads data.json beside it when it is imported; each text of HELD keeps what was read elsewhere.
TASK = """
import json
from functools import partial
from pathlib import Path

import dspy
from colever import Criterion, Rubric, Task

FOLDER = str(Path(__file__).parent)
DATA = json.loads((Path(__file__).parent / "data.json").read_text())
rows = [dspy.Example(q=str(i), a=str(i)).with_inputs("q") for i in range(12)]

def same(e, p, s): return (e.a == p.a) + 0 * len(FOLDER)

class Base:
    def __init__(self, facts): self.facts = facts
    def find(self, q: str) -> str: return self.facts[0]

class Program(dspy.Module):
    def __init__(self, **held):
        super().__init__()
        self.say = dspy.Predict("q -> a")
        for name, value in held.items(): setattr(self, name, value)

class Outer(dspy.Module):
    def __init__(self, **held):
        super().__init__()
        self.inner = Program(**held)

def finish(build, check=same):
    return Task("mine", build, rows[:4], rows[4:8], rows[8:], Rubric([Criterion("a", check)]))
"""
HELD = {
    "list": "task = finish(partial(Program, facts=list(DATA)))",
    "dict_and_set": "task = finish(partial(Program, facts={('a', 1): DATA, 'set': {*'abcdef'}}))",
    "object": "task = finish(partial(Program, base=Base(DATA)))",
    "method": "task = finish(partial(Program, find=Base(DATA).find))",
    "builtin_method": "task = finish(partial(Program, find=dict.fromkeys(DATA).get))",
    "sub_module": "task = finish(partial(Outer, facts=DATA))",
    "tool": "task = finish(partial(dspy.ReAct, 'q -> a', tools=[Base(DATA).find]))",
    "global_value": "def check(e, p, s): return e.a in DATA\ntask = finish(Program, check)",
    "called": "def inner(a): return a in DATA\ndef check(e, p, s): return inner(e.a)\ntask = finish(Program, check)",
    "helper": "import helping.middle\ntask = finish(Program)",
    "helpers_value": (
        "import helping.plain\ndef check(e, p, s): return e.a in helping.plain.HELD\ntask = finish(Program, check)"
    ),
}
HELPING = {  # a package without an __init__.py
    "middle": "from . import inner",
    "plain": "from pathlib import Path; HELD = (Path(__file__).parent.parent / 'data.json').read_text()",
}


def digests(folder: Path, content: str) -> dict[str, str]:
    """By the keys of HELD, in a process of its own."""
    (folder / "helping").mkdir(parents=True, exist_ok=True)
    for name, text in {**HELPING, "inner": f"CONTENT = {content}"}.items():
        (folder / "helping" / f"{name}.py").write_text(text + "\n")
    (folder / "data.json").write_text(content)
    for name, text in HELD.items():
        (folder / f"{name}.py").write_text(f"{TASK}{text}\n")
    code = (
        "import json; from colever.tasks.load import load_task\n"
        f"print(json.dumps({{n: load_task({str(folder)!r} + f'/{{n}}.py').digest() for n in {[*HELD]}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Digests of the same tasks at one place and at another, and with other data."""
    place = tmp_path_factory.mktemp("held")
    return [digests(place / folder, content) for folder, content in (("a", "[1]"), ("b", "[1]"), ("a", "[2]"))]


@pytest.mark.parametrize("name", HELD)
def test_it_follows_what_the_code_holds(three: list[dict[str, str]], name: str) -> None:
    first, moved, other = (found[name] for found in three)
    assert first == moved != other


def test_files_of_one_name_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folders = ("first_of_two", "second_of_two")
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "checks.py").write_text("def check(*_): return 1\n")
    checks = [import_module(f"{folder}.checks").check for folder in folders]
    program = dspy.Predict("q -> a")
    found = {source_digest(program, checks), source_digest(program, checks[::-1])}
    assert len(found) == 1
    for folder in folders:
        (tmp_path / folder / "checks.py").write_text(f"def check(*_): return 1  # changed in {folder}\n")
        found.add(source_digest(program, checks))
    assert len(found) == 3


def test_what_code_assigns_is_not_its_data(tmp_path: Path) -> None:
    check = "calls = 0\ndef check(e, p, s):\n    global calls\n    calls += 1\n    return 1"
    (tmp_path / "data.json").write_text("[1]")
    (tmp_path / "counting.py").write_text(f"{TASK}{check}\ntask = finish(Program, check)\n")
    task = load_task(str(tmp_path / "counting.py"))
    before = task.digest()
    task.rubric.score(dspy.Example(), dspy.Prediction(), ())
    assert task.digest() == before


def test_files_that_a_task_depends_on(tmp_path: Path) -> None:
    file = tmp_path / "facts.db"
    file.write_text("1")
    task = Task(**{**vars(load_task("routing")), "depends_on": [file]})
    before = task.digest()
    file.write_text("2")
    assert task.digest() != before
    with pytest.raises(TaskError, match=r"depends_on of task 'routing': gone\.db is no file; accepted: paths"):
        check_task(Task(**{**vars(task), "depends_on": ["gone.db"]}))


def test_a_value_that_holds_itself_is_described() -> None:
    def ring(last: int) -> list[object]:
        made: list[object] = [1, {"x": last}]
        made.append(made)
        return made

    assert describe(ring(2)) == describe(ring(2)) != describe(ring(3))
    assert describe([str.lower]) != describe([str.upper])
