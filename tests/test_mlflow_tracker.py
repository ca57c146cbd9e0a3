"""A made-up study told to a real MLflow database: once, twice, killed, stopped, and with the database busy."""

from __future__ import annotations

import inspect
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from synthetic_study import BASE, around, evaluation, make_report, make_rollout, make_trials

from colever.errors import StoreError
from colever.looks import Look
from colever.optimizers.tracker import Tracker
from colever.split import Split
from colever.tracking import store
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.types import Candidate, Cost, TrialRecord

STUDY, TASK = "arithmetic-seed-s0", "arithmetic"


@pytest.fixture
def home(empty_home: Path, tmp_path: Path) -> Path:
    shutil.copy(store.database(empty_home), tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def told(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the whole study in it; tests read it only."""
    home = tmp_path_factory.mktemp("told")
    shutil.copy(store.database(empty_home), home / "mlflow.db")
    tell(MlflowTracker(home), make_trials(home / "weights"))
    return home


SPLITS = [Split(name, f"digest-{name}", size, ("problem", "answer")) for name, size in (("train", 96), ("dev", 64))]
ROLLOUTS = [make_rollout(f"dev-{i}", total, said) for i, (total, said) in enumerate([(1.0, "11"), (0.5, "12")])]


def start(tracker: MlflowTracker) -> None:
    config = {"seed": 0, "trials": 4, "weights": {"updates": 40}}
    tracker.study_started(
        STUDY, TASK, "seed", config, "4 trials: p; w", splits=SPLITS, manifest={"command": "colever sweep arithmetic"}
    )


def tell(tracker: MlflowTracker, trials: Sequence[TrialRecord], *, finish: bool = True) -> None:
    start(tracker)
    tracker.base_evaluated(trials[0].rounds[0].before, ROLLOUTS)
    seen: set[str] = set()
    for trial in trials:
        tracker.trial_started(trial.number, trial.schedule, trial.settings)
        for index, record in enumerate(trial.rounds):
            tracker.round_finished(trial.number, index, record, record.key in seen, ROLLOUTS)
            seen.add(record.key)
        tracker.trial_finished(trial)
    if finish:
        pairs = {"test-7": (make_rollout("test-7", 0.5, "12"), make_rollout("test-7", 1.0, "11"))}
        tracker.study_finished(replace(make_report(trials), rollouts=pairs))


def runs_of(home: Path, **tags: str) -> list[Run]:
    client = MlflowClient(store.tracking_uri(home))
    experiment = client.get_experiment_by_name(TASK)
    assert experiment is not None
    terms = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return list(client.search_runs([experiment.experiment_id], terms, order_by=["attributes.start_time ASC"]))


def history(home: Path, run: Run, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(store.tracking_uri(home)).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def shape(home: Path) -> Counter[tuple[str, str, str, str]]:
    """Kind, trial, round and status of every run."""
    found = (run.data.tags | {"status": run.info.status} for run in runs_of(home))
    return Counter((t["kind"], t.get("trial", ""), t.get("round", ""), t["status"]) for t in found)


def artifact(home: Path, run: Run, path: str) -> Path:
    client = MlflowClient(store.tracking_uri(home))
    return Path(client.download_artifacts(run.info.run_id, path))


def test_implements_the_protocol() -> None:
    for name, method in inspect.getmembers(Tracker, inspect.isfunction):
        if not name.startswith("_"):
            own = inspect.signature(getattr(MlflowTracker, name))
            assert list(own.parameters) == list(inspect.signature(method).parameters), name


def test_study_trials_and_rounds_are_nested(told: Path) -> None:
    (study,) = runs_of(told, kind="study")
    trials = runs_of(told, kind="trial")
    assert [run.info.run_name for run in trials] == [
        "prompt #0",
        "weights #1",
        "prompt → weights #2",
        "weights → prompt #3",
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    parents = {run.info.run_id: run.data.tags["trial"] for run in trials}
    rounds = runs_of(told, kind="round")
    assert [parents[run.data.tags["mlflow.parentRunId"]] for run in rounds] == [r.data.tags["trial"] for r in rounds]
    assert Counter(r.data.tags["trial"] for r in rounds) == {"0": 1, "1": 1, "2": 2, "3": 2}
    assert {run.info.status for run in runs_of(told)} == {"FINISHED"}


def test_trial_curves_gains_costs_and_test(told: Path) -> None:
    trial = make_trials()[2]
    (run,) = runs_of(told, kind="trial", trial="2")
    states = [trial.rounds[0].before, trial.rounds[0].after, trial.rounds[1].after]
    assert history(told, run, "dev/score") == [(i, pytest.approx(s.score, abs=1e-4)) for i, s in enumerate(states)]
    assert history(told, run, "dev/format") == [
        (i, pytest.approx(s.by_criterion["format"], abs=1e-4)) for i, s in enumerate(states)
    ]
    assert history(told, run, "cost/rollouts") == [(0, 0), (1, 448), (2, 5568)]
    metrics = run.data.metrics
    assert metrics["gain/prompt"] == pytest.approx(states[1].score - states[0].score, abs=1e-4)
    assert metrics["gain/weights"] == pytest.approx(states[2].score - states[1].score, abs=1e-4)
    assert metrics["test/gold"] == pytest.approx((states[2].gold or 0) - 0.004, abs=1e-4)
    assert set(run.data.params) == {"schedule", "candidates", "demos", "updates", "G", "lr"}
    keys = {frozenset(r.data.params) for r in runs_of(told, kind="trial")}
    assert len(keys) == 1, "a comparison needs the same parameters on every trial"


def test_round_runs_hold_curves_gain_and_tags(told: Path) -> None:
    record = make_trials()[2].rounds[1]
    (run,) = runs_of(told, kind="round", trial="2", round="2")
    curve = history(told, run, "train/reward")
    assert [step for step, _ in curve] == [step for step, _ in record.metrics["reward"]]
    assert [value for _, value in curve] == pytest.approx([v for _, v in record.metrics["reward"]], abs=1e-4)
    assert run.data.metrics["gain"] == pytest.approx(record.after.score - record.before.score, abs=1e-4)
    tags = run.data.tags
    assert (tags["lever"], tags["accepted"], tags["reused"], tags["after"]) == ("weights", "yes", "no", "prompt")
    (shared,) = runs_of(told, kind="round", trial="2", round="1")
    assert shared.data.tags["reused"] == "yes"
    assert shared.info.end_time == shared.info.start_time


def test_base_is_an_arm_of_its_own(told: Path) -> None:
    (base,) = runs_of(told, kind="base")
    assert base.data.metrics["dev/gold"] == pytest.approx(0.625)
    assert base.data.metrics["test/gold"] == pytest.approx(0.621)
    assert base.data.metrics["gain/weights"] == 0
    assert len(runs_of(told, arm="yes")) == 5


def test_study_run_says_the_verdict_first_and_holds_the_report(told: Path) -> None:
    (run,) = runs_of(told, kind="study")
    assert run.data.tags["mlflow.note.content"].startswith("**arithmetic: 62.1 % → 94.3 % gold on test")
    assert run.data.metrics["test/both"] == pytest.approx(0.943)
    assert run.data.metrics["effect/weights"] == pytest.approx(0.2185)
    assert json.loads(artifact(told, run, "report.json").read_text())["winner"] == "p,w"
    assert "94.3 % gold on test" in artifact(told, run, "report.html").read_text()
    assert {path.name for path in artifact(told, run, "figures").iterdir()} >= {"1-levers.png", "2-cost.png"}


def test_candidate_and_small_weights_load_back(told: Path) -> None:
    (run,) = runs_of(told, kind="trial", trial="2")
    folder = artifact(told, run, "candidate")
    loaded = Candidate.from_json(json.loads((folder / "candidate.json").read_text()))
    assert loaded.digest == make_trials()[2].candidate.digest
    assert (folder / "weights" / "model.safetensors").read_bytes() == b"p,w" * 1000


def test_large_weights_are_referred_to_only(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colever.tracking.mlflow_tracker.SMALL_WEIGHTS", 100)
    tell(MlflowTracker(home), make_trials(tmp_path / "weights", ["w"]), finish=False)
    (run,) = runs_of(home, kind="trial")
    assert not (artifact(home, run, "candidate") / "weights").exists()


def test_views_fit_mlflows_tags(told: Path) -> None:
    experiment = MlflowClient(store.tracking_uri(told)).get_experiment_by_name(TASK)
    assert experiment is not None
    views = {key: value for key, value in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")}
    assert len(views) == 4
    assert all(len(value) < 20_000 for value in views.values())
    listed = [json.loads(value) for key, value in views.items() if key.endswith("-view")]
    assert sorted(view["name"] for view in listed) == [f"{STUDY}: arms", f"{STUDY}: rounds"]
    assert all("dev/gold" in view["state"] for view in listed)


def test_told_twice_is_written_once(home: Path, tmp_path: Path) -> None:
    trials = make_trials(tmp_path / "weights", ["p", "p,w"])
    tell(MlflowTracker(home), trials)
    before = {run.info.run_id: (run.info.status, run.data.metrics) for run in runs_of(home)}
    (trial,) = runs_of(home, kind="trial", trial="1")
    curve = history(home, trial, "dev/score")
    tell(MlflowTracker(home), trials)
    assert {run.info.run_id: (run.info.status, run.data.metrics) for run in runs_of(home)} == before
    assert history(home, trial, "dev/score") == curve


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_mlflow_tracker import *
home = Path({home!r})
tracker, trials = MlflowTracker(home), make_trials(home / "weights")
tell(tracker, trials[:2], finish=False)
tracker.trial_started(2, trials[2].schedule, trials[2].settings)
tracker.round_finished(2, 0, trials[2].rounds[0], True)
tracker._log_round = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # the round's run is open, nothing in it
tracker.round_finished(2, 1, trials[2].rounds[1], False)
"""


def test_a_killed_study_goes_on_without_orphans_or_duplicates(home: Path, told: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), home=str(home))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (done.stdout, done.stderr) == ("", ""), "nothing of alembic or MLflow on the console"
    assert {key[0] for key in shape(home) if key[3] == "RUNNING"} == {"study", "trial", "round"}
    tracker = MlflowTracker(home)
    start(tracker)
    assert [key for key in shape(home) if key[3] == "RUNNING"] == [("study", "", "", "RUNNING")]
    tell(tracker, make_trials(home / "weights"))
    assert shape(home) == shape(told)
    (run,) = runs_of(home, kind="trial", trial="2")
    (same,) = runs_of(told, kind="trial", trial="2")
    assert run.data.metrics == same.data.metrics
    assert history(home, run, "dev/gold") == history(told, same, "dev/gold")


def test_a_stopped_study_leaves_no_running_run(home: Path) -> None:
    tracker, trial = MlflowTracker(home), make_trials()[2]
    tracker.study_stopped("before it began")
    start(tracker)
    tracker.base_evaluated(trial.rounds[0].before)
    tracker.trial_started(2, trial.schedule, trial.settings)
    tracker.round_finished(2, 0, trial.rounds[0], False)
    tracker.study_stopped("interrupted")
    assert {key[0]: key[3] for key in shape(home)} == {
        "study": "KILLED",
        "trial": "KILLED",
        "base": "FINISHED",
        "round": "FINISHED",
    }
    assert runs_of(home, kind="study")[0].data.tags["stopped"] == "interrupted"


def test_pruned_and_failed_trials_have_their_status(home: Path) -> None:
    tracker = MlflowTracker(home)
    start(tracker)
    for number, state in enumerate(("pruned", "failed")):
        tracker.trial_started(number, "w", {})
        record = TrialRecord(number, "w", {}, state, (), evaluation(0.5, 0.5), BASE, Cost())  # type: ignore[arg-type]
        tracker.trial_finished(record)
    assert [run.info.status for run in runs_of(home, kind="trial")] == ["KILLED", "FAILED"]


def test_names_that_mlflow_refuses_are_made_fit(home: Path) -> None:
    tracker = MlflowTracker(home)
    start(tracker)
    trial = make_trials()[0]
    odd = replace(
        trial.rounds[0],
        after=replace(trial.rounds[0].after, by_criterion={"right (exact)": 0.5}, completion_tokens={"steps[0]": 3.0}),
    )
    tracker.trial_started(0, trial.schedule, trial.settings)
    tracker.round_finished(0, 0, odd, False)
    (run,) = runs_of(home, kind="round")
    assert run.data.metrics["dev/right .exact."] == 0.5
    assert run.data.metrics["tokens/steps.0."] == 3.0


def test_a_changed_parameter_becomes_a_tag(home: Path) -> None:
    tracker = MlflowTracker(home)
    start(tracker)
    tracker.study_started(STUDY, TASK, "seed", {"seed": 0, "trials": 8}, "8 trials")
    (run,) = runs_of(home, kind="study")
    assert run.data.params["trials"] == "4"
    assert run.data.tags["now.trials"] == "8"


def test_another_study_under_the_same_name_does_not_mix_with_the_earlier_one(home: Path) -> None:
    tracker, trial = MlflowTracker(home), make_trials()[0]
    for key in ("one", "one", "two"):
        tracker.study_started(STUDY, TASK, "seed", {"seed": 0}, "1 trial", key)
        tracker.trial_started(0, trial.schedule, trial.settings)
        tracker.round_finished(0, 0, trial.rounds[0], False)
        tracker.trial_finished(trial)
    (new,) = runs_of(home, kind="study", study=STUDY)
    assert new.data.tags["key"] == "two"
    assert len(runs_of(home, kind="round", study=STUDY)) == 1
    names = {run.data.tags["study"] for run in runs_of(home, kind="round")} - {STUDY}
    assert len(names) == 1
    assert next(iter(names)).startswith(f"{STUDY} (earlier, ")


def test_a_study_that_ends_again_shows_its_new_values(home: Path) -> None:
    tracker, report = MlflowTracker(home), make_report()
    for gold in (0.943, 0.93, 0.93):
        start(tracker)
        cell = replace(report.table["both"], gold=around(gold))
        tracker.study_finished(replace(report, table={**report.table, "both": cell}))
    (run,) = runs_of(home, kind="study")
    assert run.data.metrics["test/both"] == pytest.approx(0.93)
    assert [value for _, value in history(home, run, "test/both")] == pytest.approx([0.93, 0.943])


def test_a_replaced_round_takes_the_place_of_the_old_one(home: Path) -> None:
    tracker, trial = MlflowTracker(home), make_trials()[0]
    start(tracker)
    for key in ("old", "new"):
        tracker.trial_started(0, trial.schedule, trial.settings)
        tracker.round_finished(0, 0, replace(trial.rounds[0], key=key), False)
    assert [run.data.tags["key"] for run in runs_of(home, kind="round")] == ["new"]


def test_a_busy_database_is_a_store_error_and_loses_nothing(home: Path) -> None:
    tracker, trial = MlflowTracker(home, wait=0.5), make_trials()[0]
    start(tracker)
    tracker.trial_started(0, trial.schedule, trial.settings)
    other = sqlite3.connect(store.database(home), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"mlflow\.db is busy.*run the same command again"):
        tracker.round_finished(0, 0, trial.rounds[0], False)
    tracker.study_stopped("busy")  # says so in the log, and lets the first error through
    with pytest.raises(StoreError, match="busy"):
        MlflowTracker(home, wait=0.1)
    other.execute("ROLLBACK")
    other.close()
    tell(MlflowTracker(home), [trial])
    assert history(home, runs_of(home, kind="trial")[0], "cost/rollouts") == [(0, 0), (1, 448)]


def test_what_is_not_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but text that is long enough to be looked at")
    with pytest.raises(StoreError, match=r"mlflow\.db: file is not a database; move it away"):
        MlflowTracker(tmp_path)


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--home"):
        MlflowTracker(tmp_path / "file" / "home")


def test_names_with_quotes_and_slashes_work(home: Path) -> None:
    tracker = MlflowTracker(home)
    for _ in range(2):
        tracker.study_started("it's", "my/task.py:task", "org/model", {}, "1 trial")
        tracker.trial_started(0, "p", {})
    client = MlflowClient(store.tracking_uri(home))
    experiment = client.get_experiment_by_name("my/task.py:task")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_what_the_guard_saw_is_a_curve_and_an_alarm_is_a_tag(home: Path) -> None:
    trials, tracker = make_trials()[:1], MlflowTracker(home)
    seen = Look(1, 0.3, -0.1, 0.5, 0.0, 0.35, 0.31, 0.025, 0.05, 64)
    start(tracker)
    for _ in range(2):  # a resumed study tells it again
        tracker.base_evaluated(trials[0].rounds[0].before)
        tracker.trial_started(0, "p", {})
        tracker.round_finished(0, 0, trials[0].rounds[0], False)
        tracker.round_judged(0, 0, seen)
    for kind in ("round", "trial"):
        (run,) = runs_of(home, kind=kind)
        assert run.data.metrics["guard/false_gain"] == 0.35
        assert run.data.metrics["guard/false_gain_low"] == 0.31
        assert run.data.tags["hacking"] == "yes"
    assert runs_of(home, kind="study")[0].data.tags["hacking"] == "yes"
    history = MlflowClient(store.tracking_uri(home)).get_metric_history(
        runs_of(home, kind="trial")[0].info.run_id, "guard/gold_gain"
    )
    assert [(point.step, point.value) for point in history] == [(1, -0.1)]
