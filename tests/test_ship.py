"""A study's candidate leaves it and answers the same: full weights, a LoRA adapter, merged; by files and by MLflow."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from shipped import change_manifest, run_sum_study, sum_task, write_bundle
from small_disk import small_disk

import colever
from colever.errors import StoreError, TaskError, UsageError
from colever.optimizers.evaluate import evaluate
from colever.ship.export import chosen, export
from colever.ship.opened import open_bundle
from colever.ship.written import written
from colever.tracking import store
from colever.tracking.registry import register
from colever.types import Evaluation

WEIGHTS = {"full": {"peft": "none"}, "lora": {"peft": "lora"}}


@pytest.fixture(scope="module")
def studied(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study for each kind of weights, on a task file of the user's own."""
    home = tmp_path_factory.mktemp("studied")
    shutil.copy(store.database(empty_home), home / "mlflow.db")
    task = sum_task(home / "tasks")
    for name, weights in WEIGHTS.items():
        run_sum_study(home, task, name, weights)
    return home


def before(home: Path, study: str, which: str = "0.1") -> Evaluation:
    """The candidate on test as the study has it."""
    from colever.optimizers.study import find_study

    folder = find_study(home, study)
    state = folder.state()
    assert state is not None
    candidate, _ = chosen(folder, state, which)
    task = colever.load_task(state.task)
    return evaluate(candidate, task, colever.seed_lm().engine, "test")


def called(program: Any, task: Any) -> list[float]:
    """The same by calling the program from many threads."""

    def one(row: tuple[str, dspy.Example]) -> float:
        try:
            return task.score(row[1], program(**row[1].inputs()), ()).total
        except dspy.utils.exceptions.AdapterParseError:
            return 0.0

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, task.examples("test")))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_scores_before_export_and_after_load_are_equal(studied: Path, tmp_path: Path, kind: str) -> None:
    expected = before(studied, kind)
    assert expected.scores != before(studied, kind, "base").scores, "the updates changed nothing: nothing is tested"
    export(studied, f"{kind}:0.1", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    program = colever.load(tmp_path / "moved", trust_code=True)
    assert isinstance(program, dspy.Module)
    assert program.bundle.manifest.weights.kind == kind
    assert program.evaluate("test").scores == expected.scores
    assert called(program, program.task) == list(expected.scores)
    assert {path.suffix for path in (tmp_path / "moved").rglob("*") if path.is_file()} == {
        ".json", ".safetensors", ".html", ".py", ".yaml",
    }  # fmt: skip
    open_bundle(tmp_path / "moved")  # loading and running it wrote nothing into it


def test_a_merged_one_is_a_whole_checkpoint_and_scores_the_same(studied: Path, tmp_path: Path) -> None:
    export(studied, "lora:0.1", tmp_path / "out", merge=True)
    program = colever.load(tmp_path / "out", trust_code=True)
    assert program.bundle.checkpoint is not None
    assert program.engine.source == str(tmp_path / "out" / "model")
    assert program.evaluate("test").score == pytest.approx(before(studied, "lora").score, abs=0.05)
    assert not (tmp_path / "out" / "weights").exists()


def test_a_task_file_is_carried_and_runs_for_those_who_trust_it(studied: Path, tmp_path: Path) -> None:
    export(studied, "full", tmp_path / "out")
    with pytest.raises(TaskError, match=r"brings its own task file task_code/small_sums.py, .* trust_code=True"):
        colever.load(tmp_path / "out")
    assert (tmp_path / "out" / "task_code" / "small_sums.py").is_file()


def test_the_command_says_what_it_wrote_and_refuses_a_folder_that_holds_something(
    studied: Path, tmp_path: Path, run: Any
) -> None:
    status, out, _ = run("export", "lora:0", tmp_path / "out", "--home", studied, "--json")
    assert status == 0
    manifest = json.loads(out)
    assert (manifest["study"], manifest["which"], manifest["task"]["inputs"]) == ("lora", "0", ["problem"])
    assert set(manifest["files"]) >= {"program.json", "rubric.yaml", "report.html", "report.json", "serve.py"}
    status, _, err = run("export", "lora", tmp_path / "out", "--home", studied)
    assert (status, "is there and not empty; accepted: a folder that is empty or not there yet" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    assert run("export", "lora:base", tmp_path / "empty", "--home", studied)[0] == 0
    for wrong, said in {"lora:9": "trial 9: accepted: 0", "lora:9.9": "accepted: 0.1", "none": "no study"}.items():
        status, _, err = run("export", wrong, tmp_path / "other", "--home", studied)
        assert (status, said in " ".join(err.split())) == (2, True), err
        assert not (tmp_path / "other").exists()


def test_a_rubric_file_goes_along_as_data(tmp_path: Path) -> None:
    rubric = tmp_path / "strict.toml"
    rubric.write_text(
        '[[criterion]]\nname = "right"\nkind = "number"\nfield = "answer"\n'
        '[[criterion]]\nname = "mine"\nkind = "python"\ncheck = "own.py:short"\nweight = 0.5\n'
        '[[criterion]]\nname = "other"\nkind = "task"\ncriterion = "in_range"\n'
    )
    (tmp_path / "own.py").write_text("def short(example, prediction, steps):\n    return prediction.answer < 100\n")
    from colever.config import SweepConfig
    from colever.studies import run_study

    task = sum_task(tmp_path / "tasks")
    settings: dict[str, Any] = {"updates": 1, "examples_per_update": 4, "group_size": 4, "peft": "lora"}
    config = SweepConfig(task=task, study="r", rubric=str(rubric), trials=1, schedules=("w",), weights=settings)
    run_study(config, tmp_path)
    export(tmp_path, "r:base", tmp_path / "out")
    assert (tmp_path / "out" / "task_code" / "own.py").is_file()
    program = colever.load(tmp_path / "out", trust_code=True)
    found = program.evaluate("test", limit=8)
    assert list(found.by_criterion) == ["right", "mine", "other"]
    assert program.bundle.manifest.rubric is not None
    assert set(program.bundle.manifest.rubric.code) == {"mine", "other"}


def test_the_registered_version_is_a_bundle_that_scores_the_same(studied: Path) -> None:
    import mlflow

    from colever.optimizers.attribution import report_of
    from colever.optimizers.study import find_study

    folder = find_study(studied, "lora")
    state = folder.state()
    assert state is not None
    made = replace(folder.trials(state)[0].rounds[0], accepted=True)  # whether or not its few updates were a gain
    report, settings = replace(report_of(folder), path=(made,), winner="w"), folder.manifest()
    client = store.open_client(studied)
    run = client.create_run(store.experiment(client, studied, report.task))
    register(client, run, report, settings["config"], settings)
    version = client.search_model_versions(f"run_id = '{run.info.run_id}'")[0]
    loaded = mlflow.pyfunc.load_model(version.source)
    bundle = loaded._model_impl.bundle
    assert bundle.manifest.rubric is not None
    assert {"program.json", "rubric.yaml"} <= set(bundle.manifest.files)
    task = colever.load_task(bundle.manifest.task.name)
    rows = task.examples("test")
    answers = loaded.predict([dict(row.inputs()) for _, row in rows])
    scores = [task.score(r, dspy.Prediction(**a), ()).total if "error" not in a else 0.0
              for (_, r), a in zip(rows, answers, strict=True)]  # fmt: skip
    assert scores == list(before(studied, "lora").scores)


def test_a_full_disk_leaves_nothing(studied: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(StoreError, match=r"cannot be written: .*Free disk space"):
            export(studied, "full:0.1", disk.folder / "out")
        assert list(disk.folder.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from colever.ship.written import written
with written(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_killed_export_leaves_no_folder_and_the_next_one_clears_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with written(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fills_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    writing = written(tmp_path / "out")
    (writing.__enter__() / "whole").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").touch()
    with pytest.raises(UsageError, match="not empty"):
        writing.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]


def test_another_model_or_task_is_said(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b")
    change_manifest(tmp_path / "b", model__digest="0" * 16)
    with pytest.raises(StoreError, match="is not the one that the candidate was made on"):
        colever.load(tmp_path / "b")
    write_bundle(tmp_path / "c", task="lookup")
    with pytest.raises(UsageError, match="no predictor named check, solve"):
        colever.load(tmp_path / "c")


def test_it_takes_its_inputs_and_no_others(tmp_path: Path) -> None:
    program = colever.load(write_bundle(tmp_path / "b"))
    with pytest.raises(UsageError, match=r"accepted: \['problem'\]"):
        program(question="1 + 1")
    dspy_lm = dspy.LM("openai/nobody", api_key="none", api_base="http://127.0.0.1:9")
    with dspy.context(lm=dspy_lm):  # it has its own
        assert program(problem="1 + 1").answer is not None


def test_a_study_goes_on_from_a_bundle(studied: Path, tmp_path: Path, run: Any) -> None:
    task = sum_task(tmp_path / "tasks")
    export(studied, "lora:0.1", tmp_path / "out")
    small = ["--set", "weights.updates=1", "--set", "weights.examples_per_update=4", "--set", "weights.group_size=4"]
    flags = ["--trials", "1", "--set", "schedules=[w]", *small, "--home", tmp_path / "home", "--json"]
    status, out, err = run("sweep", task, "--from", tmp_path / "out", *flags)
    assert status == 0, err
    assert json.loads(out)["study"] == "small_sums-task-from-out-seed-s0"
    expected = before(studied, "lora")
    assert json.loads(out)["table"]["base"]["score"] == pytest.approx(expected.score)
    (tmp_path / "out").rename(tmp_path / "moved")  # its weights were copied
    status, _, err = run(
        "export", "small_sums-task-from-out-seed-s0:base", tmp_path / "again", "--home", tmp_path / "home"
    )
    assert status == 0, err
    assert open_bundle(tmp_path / "again").candidate.digest == open_bundle(tmp_path / "moved").candidate.digest
    status, out, err = run("eval", task, "--split", "test", "--candidate", tmp_path / "moved", "--json")
    assert (status, json.loads(out)["score"]["value"]) == (0, pytest.approx(expected.score)), err
    status, _, err = run("sweep", "lookup", "--from", tmp_path / "moved", *flags)
    assert (status, "are not in both bundle and task 'lookup'" in " ".join(err.split())) == (2, True)
    (tmp_path / "moved").rename(tmp_path / "out")
    write_bundle(tmp_path / "out2")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out2").rename(tmp_path / "out")
    status, _, err = run("sweep", task, "--from", tmp_path / "out", *flags)
    assert (status, "began with another candidate" in " ".join(err.split())) == (2, True)
