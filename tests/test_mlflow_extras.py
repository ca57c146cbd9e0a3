"""Beside metrics: traces of kept rollouts, datasets, the manifest, readings of the machine, the winner as a model."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, Trace
from shipped import write_bundle
from synthetic_study import make_report, make_rollout, make_trials
from test_mlflow_tracker import ROLLOUTS, TASK, artifact, home, runs_of, start, tell  # noqa: F401
from toy import GOOD

from colever import served
from colever.errors import StoreError, TaskError
from colever.tracking import machine, registry, store
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.tracking.traces import replace_traces


@pytest.fixture(scope="module")
def told(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two trials that share a round, told twice; tests read it only."""
    import shutil

    made = tmp_path_factory.mktemp("told")
    shutil.copy(store.database(empty_home), made / "mlflow.db")
    for _ in range(2):
        tell(MlflowTracker(made), make_trials(made / "weights", ["p", "p,w"]))
    return made


def traces_at(home: Path, run: Run) -> list[Trace]:  # noqa: F811
    client = MlflowClient(store.tracking_uri(home))
    return list(client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id))


def test_each_round_has_its_rollouts_as_traces_once_and_shares_them(told: Path) -> None:
    (base,), (study,) = runs_of(told, kind="base"), runs_of(told, kind="study")
    first, shared, last = (runs_of(told, kind="round", trial=t, round=r)[0] for t, r in ("01", "11", "12"))
    seen = {run.info.run_id: traces_at(told, run) for run in (base, study, first, shared, last)}
    assert [len(found) for found in seen.values()] == [2] * 5
    ids = [{t.info.trace_id for t in found} for found in seen.values()]
    assert ids[2] == ids[3], "one round, pulled once"
    assert len(set.union(*ids)) == 8
    trace = next(t for t in seen[last.info.run_id] if t.info.tags["example"] == "dev-0")
    assert (trace.info.tags["round"], trace.info.tags["lever"], trace.info.tags["mlflow.traceName"]) == (
        "1.2", "weights", "dev-0",
    )  # fmt: skip
    root, work, check = trace.data.spans
    assert (root.name, root.inputs, root.outputs) == ("program", {"problem": "3 + 4 * 2"}, {"answer": "11"})
    assert [span.name for span in (work, check)] == ["work", "check"]
    assert {span.parent_id for span in (work, check)} == {root.span_id}
    assert work.inputs["prompt"].startswith("<|im_start|>user")
    assert work.outputs == {"answer": "11", "completion": "11"}
    values = {a.name: a.feedback.value for a in trace.info.assessments if a.feedback}
    assert values == {"score": 1.0, "gold": 1.0, "format": 1.0, "answer": 1.0}
    assert len(trace.info.assessments) == len(values), "told twice, written once"


def test_another_winner_takes_its_rollouts_place(told: Path) -> None:
    (study,) = runs_of(told, kind="study")
    uri, one, other = store.tracking_uri(told), make_rollout("test-7", 0.5, "12"), make_rollout("test-7", 0.9, "10")
    for winner in (other, one, make_rollout("test-7", 1.0, "11")):
        replace_traces(uri, study, {"base": [one], "winner": [winner]})
        found = {t.info.tags["candidate"]: t.info.response_preview for t in traces_at(told, study)}
        assert found == {"base": "12", "winner": winner.outputs["answer"]}


def test_runs_name_the_data_that_they_read(told: Path) -> None:
    def data(run: Run) -> set[tuple[str, str, str]]:
        return {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs}

    client = MlflowClient(store.tracking_uri(told))
    train, dev = ((f"arithmetic {n}", f"digest-{n}", n) for n in ("train", "dev"))
    for kind, expected in (("study", {train, dev}), ("base", {dev}), ("round", {train, dev})):
        assert data(client.get_run(runs_of(told, kind=kind)[0].info.run_id)) == expected


def test_the_study_holds_its_manifest(told: Path) -> None:
    assert "colever sweep arithmetic" in artifact(told, runs_of(told, kind="study")[0], "manifest.json").read_text()


def test_the_winner_is_one_version_and_another_winner_the_next(told: Path) -> None:
    client = MlflowClient(store.tracking_uri(told))
    (version,) = client.search_model_versions("name = 'arithmetic'")
    winner = make_trials()[2].candidate
    assert (version.tags["schedule"], version.tags["digest"], version.tags["test_gold"]) == (
        "p,w", winner.digest, "0.9430",
    )  # fmt: skip
    (study,) = runs_of(told, kind="study")
    assert version.run_id == study.info.run_id
    trials = make_trials()
    registry.register(client, study, replace(make_report(trials), path=trials[0].rounds, winner="p"), {}, {})
    versions = {v.version: v.tags for v in client.search_model_versions("name = 'arithmetic'")}
    assert {str(n): tags.get("superseded") for n, tags in versions.items()} == {"1": "version 2", "2": None}


@pytest.mark.parametrize(
    ("task", "name"), [("arithmetic", "arithmetic"), ("my/task.py:task", "task.task"), ("a:b/c", "a.b-c")]
)
def test_a_models_name_is_one_that_mlflow_takes(task: str, name: str) -> None:
    assert registry.model_name(task) == name


def test_readings_of_the_machine_are_written_while_a_study_runs(
    home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    tracker = MlflowTracker(home)
    start(tracker)
    (study,) = runs_of(home, kind="study")
    client, deadline = MlflowClient(store.tracking_uri(home)), time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client.get_run(study.info.run_id).data.metrics:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    tracker.study_stopped("enough")
    assert client.get_run(study.info.run_id).info.status == "KILLED"
    assert tracker._machine._monitor is None


SERVED_TASK = """
import sys
sys.path.insert(0, {tests!r})
from toy import toy_task
from colever import Criterion, Rubric
import dspy

def add():
    return dspy.Predict("question -> answer")

def task(data):
    open(data).close()
    return toy_task(program=add, gold=None, instructions={{}}, rubric=Rubric([Criterion("any", lambda e, p, s: 1.0)]))
"""


def test_a_registered_winner_answers_as_the_program_does(
    home: Path,  # noqa: F811
    tmp_path: Path,
    talker_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    from colever.engines.lm import open_engine
    from colever.optimizers.evaluate import run_candidate
    from colever.tasks.load import load_task
    from colever.types import Candidate, PredictorPrompt

    file = tmp_path / "adder.py"
    file.write_text(SERVED_TASK.format(tests=str(Path(__file__).parent)))
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    name, task = f"{file}:task", load_task(f"{file}:task", "rows.jsonl")
    winner = Candidate({"self": PredictorPrompt(GOOD, ({"question": "1 + 1", "answer": "2"},))})
    settings = {"engine": {"dtype": "float32"}, "data": "rows.jsonl"}
    tracker = MlflowTracker(home)
    tracker.study_started("adder", name, str(talker_checkpoint), settings, "1 trial")
    (study,) = [r for r in runs_in(home, name) if r.data.tags["kind"] == "study"]
    rounds = (replace(make_trials()[0].rounds[0], child=winner),)
    asked = [dict(row.inputs()) for _, row in task.examples("test")[:5]]
    kept = replace(make_rollout("test-0", 1.0, "1"), inputs=asked[0])
    report = replace(
        make_report(),
        study="on-Qwen2.5",
        task=name,
        model=str(talker_checkpoint),
        path=rounds,
        rollouts={"test-0": (kept, kept)},
    )
    registry.register(MlflowClient(store.tracking_uri(home)), study, report, tracker._config, {})
    expected = run_candidate(
        winner, task, open_engine(talker_checkpoint), task.examples("test")[:5], split="test", seed=0
    )
    mlflow.set_tracking_uri(store.tracking_uri(home))
    mlflow.set_registry_uri(store.tracking_uri(home))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = mlflow.pyfunc.load_model("models:/adder.task/1")
    program = loaded._model_impl
    assert isinstance(program, served.ServedProgram)
    assert loaded.predict(asked) == [r.outputs or {"error": r.reason} for r in expected]
    files = [path for path in program.folder.parents[1].rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"MLmodel", "manifest.json", "program.json"}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".bin")]
    with pytest.raises(mlflow.MlflowException, match="missing inputs"):
        loaded.predict([{"problem": "1 + 1"}])


def runs_in(home: Path, name: str) -> list[Run]:  # noqa: F811
    client = MlflowClient(store.tracking_uri(home))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_what_is_no_winner_is_said_and_a_task_that_comes_with_it_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no manifest.json"):
        served._load_pyfunc(str(tmp_path))
    (tmp_path / "task_code").mkdir()
    (tmp_path / "task_code" / "evil.py").write_text("raise SystemExit")
    for task in (f"{tmp_path}/task_code/evil.py:task", "task_code/evil.py:task"):
        write_bundle(tmp_path, task=task)
        with pytest.raises(TaskError, match="brings its own task file"):
            served._load_pyfunc(str(tmp_path)).predict([{"problem": "1 + 1"}])
