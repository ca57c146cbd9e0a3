"""The command line: exit status, messages, JSON, examples; one real study through the whole of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]

TASK = """
import dataclasses
import dspy
from colever import Criterion, Rubric, Task

def rows(start, count):
    return [dspy.Example(question=str(i), answer=str(i)).with_inputs("question") for i in range(start, start + count)]

class Echo(dspy.Module):
    def __init__(self):
        super().__init__()
        self.say = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.say(question=question)

class Stubborn(Echo):
    def forward(self, question):
        try:
            self.say(question=question)
        except Exception:
            pass
        return dspy.Prediction(answer="1")

task = Task(
    name="echo", program=Echo, train=rows(0, 6), dev=rows(10, 4), test=rows(20, 4),
    rubric=Rubric([Criterion("same", lambda e, p, s: p.answer == e.answer)]), max_tokens=4,
)
two = dataclasses.replace(task, program=Stubborn, rubric=Rubric([Criterion("two", lambda e, p, s: 2.0)]))

def broken():
    raise RuntimeError("not today")
"""


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "command",
    [
        "",
        "tasks",
        "eval",
        "optimize",
        "sweep",
        "report",
        "show",
        "ui",
        "doctor",
        "seed",
        "seed build",
        "seed info",
        "rubric",
        "rubric check",
        "rescore",
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "colever" in out.splitlines()[-3] + out.splitlines()[-2]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, colever.cli; print(sorted({'torch', 'trl', 'mlflow', 'optuna', 'dspy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engines_names_load_nothing_before_they_are_used() -> None:
    code = (
        "import sys, colever; folder = colever.engines; print('torch' in sys.modules);"
        "import colever.engines.lm as lm; print(folder.seed_lm is lm.seed_lm, folder.engine_lm is lm.engine_lm)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_tasks_are_listed(run: Run) -> None:
    status, out, _ = run("tasks", "--json")
    assert status == 0
    assert set(json.loads(out)) == {"arithmetic", "routing", "lookup"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "nope"], "unknown task 'nope'; accepted: arithmetic"),
        (["sweep", "nope.py:task"], "nope.py"),
        (["sweep", "arithmetic", "--budget", "rollouts=-5"], "budget: rollouts=-5"),
        (["sweep", "arithmetic", "--budget", "euros=5"], "unknown key 'euros'; accepted: rollouts"),
        (["sweep", "arithmetic", "--budget", "rollouts"], "accepted: KEY=VALUE"),
        (["sweep", "arithmetic", "--set", "weights.lr=1"], "weights.lr: unknown key"),
        (["sweep", "arithmetic", "--trials", "0"], "trials"),
        (["optimize", "arithmetic", "--schedule", "p,x"], "accepted: p and w"),
        (["sweep", "arithmetic", "--config", "gone.yaml"], "gone.yaml"),
        (["report", "nope", "--home", "gone"], "no study and no task"),
        (["show", "nope", "--home", "gone"], "no study and no task"),
        (["eval", "arithmetic", "--no-such-flag"], "no-such-flag"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_2(run: Run, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert said in one_line(err)
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "attribute", "said"),
    [
        ("raise RuntimeError('at import')", "task", "at import"),
        ("", "broken", "RuntimeError: not today"),
        ("", "gone", "no 'gone'"),
        ("task = dataclasses.replace(task, test=rows(30, 1))", "task", "has 1 example"),
        ("task = dataclasses.replace(task, program=dspy.Module)", "task", "no predictors"),
    ],
)
def test_a_task_that_cannot_be_used_ends_with_2(
    run: Run, tmp_path: Path, change: str, attribute: str, said: str
) -> None:
    file = tmp_path / "my_task.py"
    file.write_text(TASK + change)
    status, _, err = run("eval", f"{file}:{attribute}")
    assert status == 2
    assert said in one_line(err)
    assert "my_task.py" in one_line(err) or "echo" in one_line(err)


def test_a_configuration_file_is_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("trails: 3\n")
    status, _, err = run("sweep", "arithmetic", "--config", file)
    assert status == 2
    assert "c.yaml" in one_line(err)
    assert "trails: unknown key" in one_line(err)


def test_doctor_speaks_json(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("doctor", "--json", "--home", tmp_path)
    found = {f["what"]: f["ok"] for f in json.loads(out)}
    assert found["torch"]
    assert found["home"]
    assert "seed model" in found


def test_the_uis_address_as_json(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(home: Path, *, announce: Callable[[str], None], **_: object) -> None:
        announce(f"http://127.0.0.1:5000/{home.name}")

    monkeypatch.setattr("colever.tracking.ui.serve", serve)
    status, out, err = run("ui", "--json", "--home", tmp_path / "home")
    assert (status, json.loads(out), err) == (0, {"url": "http://127.0.0.1:5000/home"}, "")
    status, out, err = run("ui", "--home", tmp_path / "home")
    assert (status, out) == (0, "")
    assert "http://127.0.0.1:5000/home" in err


def test_the_built_seed_models_card_as_json(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def build(out: Path, recipe: object, **options: object) -> dict[str, object]:
        asked.append(options)
        return {"parameters": 1000, "loss": 0.5, "seconds": 3}

    monkeypatch.setattr("colever.engines.seed.build.build", build)
    status, out, _ = run("seed", "build", "--out", tmp_path, "--replace", "--json")
    assert (status, json.loads(out)) == (0, {"path": str(tmp_path), "parameters": 1000, "loss": 0.5, "seconds": 3})
    status, out, err = run("seed", "build", "--out", tmp_path)
    assert (status, out) == (0, "")
    assert "1,000 parameters" in err
    assert [options["replace_finished"] for options in asked] == [True, False]


def test_a_criterion_out_of_range_ends_with_2(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = tmp_path / "my_task.py"
    file.write_text(TASK)
    status, _, err = run("eval", f"{file}:two", "--model", tiny_checkpoint)
    assert status == 2
    assert "criterion 'two' returned 2.0" in one_line(err)


def test_a_study_through_the_whole_command_line(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file, home = tmp_path / "my_task.py", tmp_path / "home"
    file.write_text(TASK)
    task = f"{file}:task"
    small = ["--set", "prompt.candidates=1", "--set", "prompt.demos=1", "--model", tiny_checkpoint, "--home", home]
    status, out, err = run("optimize", task, "--schedule", "p", "--study", "mine", "--json", *small)
    assert (status, err) == (0, err)
    first = json.loads(out)
    assert first["finished"]
    assert first["arms"][0]["schedule"] == "p"
    assert first["table"]["weights"] is None or first["table"]["weights"]["score"] is None
    folder = home / "studies" / "mine"
    assert json.loads((folder / "report.json").read_text()) == first
    assert "candidates: 1" in (folder / "config.yaml").read_text()
    status, out, _ = run("report", "mine", "--json", "--home", home, "--out", tmp_path / "out")
    assert (status, json.loads(out)) == (0, first)
    assert (tmp_path / "out" / "report.json").exists()
    assert (folder / "report.html").read_text() == (tmp_path / "out" / "report.html").read_text()
    page = tmp_path / "mail" / "mine.html"
    status, out, _ = run("report", "mine", "--json", "--home", home, "--html", page)
    assert (status, json.loads(out)) == (0, first)
    assert page.read_text() == (folder / "report.html").read_text()
    status, _, err = run("report", "mine", "--home", home, "--html", tmp_path / "mail")
    assert status == 1
    assert "the page cannot be written" in one_line(err)
    file.write_text(TASK + "\ntask = dataclasses.replace(task, target=0.5)")
    status, _, err = run("report", "mine", "--home", home, "--html", page)
    assert status == 0
    assert "no rollout was kept are named, not shown: task 'echo' is not the one" in one_line(err)
    status, out, _ = run("rollouts", "mine", "0.1", "--json", "--home", home)
    assert (status, [r["example_id"] for r in json.loads(out)]) == (0, ["dev-0", "dev-1", "dev-2", "dev-3"])
    status, out, _ = run("rollouts", "mine", "base", "--split", "test", "--prompts", "--home", home)
    assert status == 0
    assert "<|im_start|>system" in out
    status, _, err = run("rollouts", "mine", "9.9", "--home", home)
    assert (status, "accepted: 0.1" in one_line(err)) == (2, True)
    file.write_text(TASK)
    status, out, _ = run("report", task, "--home", home)
    assert status == 0
    assert "base" in out
    status, _, err = run("optimize", task, "--schedule", "w", "--study", "mine", *small)
    assert status == 2
    assert "schedules" in err


def test_flipped_examples_are_shown_with_what_the_task_holds_of_them(tmp_path: Path) -> None:
    from synthetic_study import make_report

    from colever.reported import Flips
    from colever.shown import with_examples
    from colever.tasks.load import load_task

    file = tmp_path / "my_task.py"
    file.write_text(TASK)
    report = dataclasses.replace(make_report(), flips=Flips(4, ("test-1",), ("test-3", "gone"), 1.0))
    shown = with_examples(report, load_task(f"{file}:task")).flips
    assert shown is not None
    assert shown.fields == {
        "test-1": {"question": "21", "answer": "21"},
        "test-3": {"question": "23", "answer": "23"},
    }
    assert list(shown.fields["test-1"]) == ["question", "answer"]


def test_several_seeds_end_in_their_comparison(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file, home = tmp_path / "my_task.py", tmp_path / "home"
    file.write_text(TASK)
    small = ["--model", tiny_checkpoint, "--home", home, "--json", "--trials", "1"]
    small += ["--set", "prompt.candidates=1", "--set", "prompt.screen=2", "--set", "prompt.examples=2"]
    sweep = ["sweep", f"{file}:task", "--seeds", "2", "--study", "mine", *small]
    status, out, _ = run(*sweep, "--dry-run")
    estimates = json.loads(out)
    assert (status, list(estimates)) == (0, ["mine-s0", "mine-s1"])
    expected = estimates["mine-s0"]["search"]["rollouts"]
    assert expected > estimates["mine-s0"]["probe"]["rollouts"] > 0
    status, out, err = run(*sweep)
    (row,) = json.loads(out)
    assert (status, row["seeds"], row["studies"]) == (0, [0, 1], ["mine-s0", "mine-s1"])
    assert "study 2 of 2: mine-s1" in err
    report = json.loads((home / "studies" / "mine-s0" / "report.json").read_text())
    assert report["expected"]["rollouts"] == expected >= report["cost"]["rollouts"]
    status, out, _ = run("compare", "mine-s0", "mine-s1", "--home", home, "--json", "--out", tmp_path / "out")
    assert (status, json.loads(out)) == (0, [row])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == [row]
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5_000
    status, _, err = run("compare", "--home", tmp_path / "nowhere")
    assert status == 2
    assert "there is no finished study in" in one_line(err)


def test_a_study_is_made_again_from_its_manifest(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file, home = tmp_path / "my_task.py", tmp_path / "home"
    file.write_text(TASK)
    small = ["--set", "prompt.candidates=1", "--set", "prompt.screen=2", "--set", "prompt.examples=2", "--trials", "1"]
    sweep = ["sweep", f"{file}:task", "--study", "mine", "--model", tiny_checkpoint, "--home", home, *small]
    assert run(*sweep)[0] == 0
    made = json.loads((home / "studies" / "mine" / "manifest.json").read_text())["value"]
    assert made["command"].startswith("colever sweep ")
    assert made["config"]["study"] == "mine"
    assert made["versions"]["optuna"]
    assert made["machine"]["cores"] >= 1
    status, out, _ = run("rerun", "mine", "--home", home, "--json")
    assert (status, json.loads(out)) == (0, {"study": "mine", "same": True, "unlike": [], "changes": []})
    assert (home / "reruns" / "studies" / "mine" / "report.json").exists()
    file.write_text(TASK.replace("rows(20, 4)", "rows(20, 3)"))
    status, out, err = run("rerun", "mine", "--home", home, "--into", tmp_path / "again")
    assert status == 1
    assert "since then: the task is another" in one_line(err)
    assert "table.base.examples: 4, now 3" in out
    (home / "studies" / "mine" / "manifest.json").unlink()
    status, _, err = run("rerun", "mine", "--home", home)
    assert status == 1
    assert "study 'mine' has no manifest" in one_line(err)


def test_an_evaluation_of_a_candidate(run: Run, tmp_path: Path, tiny_checkpoint: Path) -> None:
    file, candidate = tmp_path / "my_task.py", tmp_path / "c.json"
    file.write_text(TASK)
    prompts = {"say": {"instructions": "Say it again.", "demos": [{"question": "1", "answer": "1"}]}}
    candidate.write_text(json.dumps({"prompts": prompts, "weights": {"kind": "base", "path": None, "digest": "base"}}))
    arguments = ["eval", f"{file}:task", "--model", tiny_checkpoint, "--limit", "3", "--json"]
    status, out, _ = run(*arguments, "--candidate", candidate)
    assert status == 0
    assert json.loads(out)["examples"] == 3
    candidate.write_text("{}")
    status, _, err = run(*arguments, "--candidate", candidate)
    assert status == 2
    assert "c.json" in one_line(err)


def test_what_to_do_about_hacking_is_a_flag(run: Run) -> None:
    for command in ("sweep", "optimize"):
        status, _, err = run(command, "arithmetic", "--on-hacking", "shout")
        assert status == 2
        assert "guard.on_hacking" in err
