"""Candidates' prompts in a real MLflow registry: one version for each text, with where it came from."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import PromptVersion
from synthetic_study import BASE, make_report, make_round, make_trials
from test_mlflow_tracker import STUDY, TASK, artifact, home, runs_of, start, tell  # noqa: F401

from colever.tracking import store
from colever.tracking.mlflow_tracker import MlflowTracker
from colever.tracking.prompt_registry import PromptRegistry
from colever.types import Candidate, PredictorPrompt, RoundRecord, TrialRecord


@pytest.fixture(scope="module")
def told(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the four arms, told twice; tests read it only."""
    made = tmp_path_factory.mktemp("told")
    shutil.copy(store.database(empty_home), made / "mlflow.db")
    for _ in range(2):
        tell(MlflowTracker(made), make_trials(made / "weights"))
    return made


def client(home: Path) -> MlflowClient:  # noqa: F811
    return MlflowClient(store.tracking_uri(home), store.tracking_uri(home))


def versions(home: Path, name: str) -> list[PromptVersion]:  # noqa: F811
    """The first one first."""
    return sorted(client(home).search_prompt_versions(name), key=lambda version: int(version.version))


def linked(run: Run) -> dict[str, str]:
    return {entry["name"]: entry["version"] for entry in json.loads(run.data.tags["mlflow.linkedPrompts"])}


def with_prompt(record: RoundRecord, prompt: PredictorPrompt, name: str = "work") -> RoundRecord:
    return replace(record, key="odd", child=Candidate({**record.child.prompts, name: prompt}))


def log(home: Path, record: RoundRecord) -> None:  # noqa: F811
    """A study of one round."""
    tracker = MlflowTracker(home)
    start(tracker)
    tracker.trial_started(0, "p", {})
    tracker.round_finished(0, 0, record, False)


def test_a_version_for_each_text_however_often_it_is_told(told: Path) -> None:
    assert {prompt.name for prompt in client(told).search_prompts()} == {"arithmetic.work", "arithmetic.check"}
    base, child = versions(told, "arithmetic.work")
    assert base.template == "Solve the problem."
    assert child.template == "Work from left to right (work).\n\n[demos: 1]\n\n    q: 1 + 1\n    a: 2"
    assert client(told).search_registered_models(filter_string=f"name = '{TASK}'"), "the winner has a name of its own"


def test_tags_say_where_a_text_came_from(told: Path) -> None:
    base, child = versions(told, "arithmetic.work")
    record = make_trials()[0].rounds[0]
    assert (base.tags["round"], base.tags["candidate"], base.tags["dev_score"]) == ("base", BASE.digest, "0.6480")
    assert "parent_version" not in base.tags
    assert child.tags.items() >= {
        "candidate": record.child.digest, "parent_version": "1", "study": STUDY, "predictor": "work", "trial": "0",
        "round": "0.1", "lever": "prompt", "way": "fewshot", "dev_score": "0.7620", "accepted": "yes",
    }.items()  # fmt: skip
    assert child.commit_message == (
        "0.1: prompt lever, way fewshot: 4 demos, labelled; dev score 64.8 % → 76.2 %, kept"
    )


def test_runs_name_their_versions_and_the_winner_has_an_alias(told: Path) -> None:
    one, two = ({f"arithmetic.{name}": number for name in ("work", "check")} for number in "12")
    assert linked(runs_of(told, kind="base")[0]) == one
    assert [linked(run) for run in runs_of(told, kind="round", trial="2")] == [two, two]
    assert linked(runs_of(told, kind="round", trial="1")[0]) == one, "weights alone keep the base's prompts"
    assert linked(runs_of(told, kind="study")[0]) == two
    found = client(told).load_prompt(f"prompts:/arithmetic.work@winner-{STUDY}")
    assert found.version == 2


def test_a_prompt_round_has_its_prompts_and_what_changed_as_files(told: Path) -> None:
    (run,) = runs_of(told, kind="round", trial="0")
    lines = artifact(told, run, "prompts.diff").read_text().splitlines()
    assert lines[:5] == [
        "--- work (parent)",
        "+++ work (0.1)",
        "@@ -1 +1,6 @@",
        "-Solve the problem.",
        "+Work from left to right (work).",
    ]
    text = artifact(told, run, "prompts.md").read_text()
    assert text.startswith("## work\n\n180.0 prompt tokens a call (before 53.0, × 3.40)\n\n```text\nWork from left")
    (other,) = runs_of(told, kind="round", trial="1")
    assert not {"prompts.diff", "prompts.md"} & {a.path for a in client(told).list_artifacts(other.info.run_id)}


def test_a_round_has_its_prompt_tokens_and_what_chose_its_child_as_metrics(told: Path) -> None:
    metrics = runs_of(told, kind="round", trial="0")[0].data.metrics
    assert (metrics["prompt_tokens/work"], metrics["prompt_tokens/check"]) == (180, 60)
    assert metrics["selection/train"] == pytest.approx(0.842, abs=1e-4)
    assert metrics["selection/drop"] == pytest.approx(0.08)
    assert metrics["headroom/gain"] == pytest.approx(0.03)
    assert runs_of(told, kind="base")[0].data.metrics["prompt_tokens/work"] == 53
    weights = runs_of(told, kind="round", trial="1")[0].data.metrics
    assert not [key for key in weights if key.startswith(("selection/", "headroom/"))]


def test_notes_without_a_selection_give_no_metric(home: Path) -> None:  # noqa: F811
    log(home, replace(make_round("prompt", "", BASE), notes={"chosen": "as it was", "tried": []}))
    (run,) = runs_of(home, kind="round")
    assert not [key for key in run.data.metrics if key.startswith(("selection/", "headroom/"))]


def test_another_studys_equal_prompt_is_the_same_version(home: Path) -> None:  # noqa: F811
    trials = make_trials(home / "weights", ["p"])
    tell(MlflowTracker(home), trials)
    tracker = MlflowTracker(home)
    tracker.study_started("other", TASK, "seed", {}, "1 trial")
    tracker.trial_started(0, "p", {})
    tracker.round_finished(0, 0, trials[0].rounds[0], False)
    assert [version.tags["study"] for version in versions(home, "arithmetic.work")] == [STUDY, STUDY]
    (run,) = runs_of(home, kind="round", study="other")
    assert linked(run)["arithmetic.work"] == "2"


def test_another_winner_takes_the_alias(home: Path) -> None:  # noqa: F811
    tracker, report = MlflowTracker(home), make_report()
    record = with_prompt(report.path[0], PredictorPrompt("Go."))
    for path in (report.path, (record,)):
        start(tracker)
        tracker.study_finished(replace(report, path=path, winner="p"))
    found = client(home).load_prompt(f"prompts:/arithmetic.work@winner-{STUDY}")
    assert (found.version, found.template) == (3, "Go.")
    start(tracker)
    declined = replace(record, accepted=False)
    tracker.study_finished(replace(report, path=(declined,), winner="p"))
    found = client(home).load_prompt(f"prompts:/arithmetic.work@winner-{STUDY}")
    assert found.template == "Solve the problem.", "its parent was kept"


def test_two_workers_make_one_version(home: Path) -> None:  # noqa: F811
    tracker = MlflowTracker(home)
    start(tracker)
    runs = []
    for number in range(4):
        tracker.trial_started(number, "p", {})
        tracker.round_finished(number, 0, make_round("weights", "", Candidate({})), False)
        runs.append(runs_of(home, kind="round", trial=str(number))[0])
    record, experiment = make_round("prompt", "", BASE), runs[0].info.experiment_id
    registries = [PromptRegistry(client(home), home, STUDY, TASK, experiment) for _ in runs]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: pair[0].log_round(pair[1], record), zip(registries, runs, strict=True)))
    assert next(version.tags["round"] for version in versions(home, "arithmetic.work")) == "base"
    assert len(versions(home, "arithmetic.work")) == len(versions(home, "arithmetic.check")) == 2


def test_a_round_that_was_not_kept_has_a_version_that_says_so(home: Path) -> None:  # noqa: F811
    record = with_prompt(make_round("prompt", "", BASE), PredictorPrompt("Worse."))
    log(home, replace(record, accepted=False))
    assert versions(home, "arithmetic.work")[-1].tags["accepted"] == "no"


def test_any_text_is_taken(home: Path) -> None:  # noqa: F811
    odd = "{{ name }} {% if x %} ``` ````"
    record = with_prompt(make_round("prompt", "", BASE), PredictorPrompt(odd, ({"q": "x" * 150_000},), 1))
    log(home, replace(record, notes={"chosen": "half a pair: \ud800"}))
    text = versions(home, "arithmetic.work")[-1].template
    assert text.startswith("{{ name }} {% if x %} ``` ````\n\n[demos: 1, nearest 1]")
    assert "characters left out" in text
    (run,) = runs_of(home, kind="round")
    assert "\n`````text\n" in artifact(home, run, "prompts.md").read_text()


def test_names_are_made_fit_and_do_not_meet_a_models(home: Path) -> None:  # noqa: F811
    client(home).create_registered_model("my_task.task.steps-0-")
    tracker = MlflowTracker(home)
    tracker.study_started("s", "folder/my_task.py:task", "seed", {}, "1 trial")
    tracker.trial_started(0, "p", {})
    record = make_round("prompt", "", BASE)
    parent, child = (Candidate({"steps[0]": PredictorPrompt(text)}) for text in ("one", "two"))
    tracker.round_finished(0, 0, replace(record, parent=parent, child=child), False)
    assert [prompt.name for prompt in client(home).search_prompts()] == ["my_task.task.steps-0--prompt"]
    assert [version.template for version in versions(home, "my_task.task.steps-0--prompt")] == ["one", "two"]


def test_a_study_begun_before_there_were_versions_gets_its_winners(home: Path) -> None:  # noqa: F811
    trials: list[TrialRecord] = make_trials(home / "weights", ["p"])
    tracker = MlflowTracker(home)
    start(tracker)
    tracker.study_finished(make_report(trials))
    assert [version.tags["round"] for version in versions(home, "arithmetic.work")] == ["base", "0.1"]
