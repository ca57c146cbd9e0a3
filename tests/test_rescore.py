"""Kept rollouts under another rubric: the same scores under the same one, and no value where something was not kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from pydantic import BaseModel
from toy import ToyEngine, toy_task

from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.rescore import KeptCompletion, NotKeptError, Rescoring, _rescored, rescore
from colever.optimizers.side_by_side import rollouts_of
from colever.optimizers.store import EvaluationStore
from colever.optimizers.study import StudyFolder
from colever.optimizers.sweep import sweep
from colever.samples import SampledRollout, SampledStep, cut
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Step

Run = Callable[..., tuple[int, str, str]]

FILE = "from toy import toy_task\ntask = toy_task()\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished study of the prompt lever on a task's file."""
    home = tmp_path_factory.mktemp("home")
    (home / "adding.py").write_text(FILE)
    small = {"prompt.candidates": 2, "prompt.screen": 8, "prompt.examples": 16, "prompt.demos": 2}
    flags = {"task": f"{home / 'adding.py'}:task", "model": "toy", "study": "mine", "schedules": ["p"], "trials": 1}
    config = load_config(flags=flags, overrides=small)
    sweep(config, toy_task(), ToyEngine(), home, levers=lambda p, w: {"prompt": PromptLever(p)})
    return StudyFolder(home, "mine")


def again(folder: StudyFolder, *criteria: Criterion, which: str = "base", **changes: object) -> Rescoring:
    return rescore(folder, toy_task(rubric=Rubric(criteria), **changes), which, "dev")


def test_the_same_rubric_gives_the_same_scores(folder: StudyFolder) -> None:
    for which in ("base", "0.1", "winner"):
        found = rescore(folder, toy_task(), which, "dev")
        assert (found.kept, found.evaluated, found.lacking, found.notes) == (8, 60, {}, ())
        assert [(r.old, r.old_by_criterion) for r in found.rollouts] == [
            (r.new, r.by_criterion) for r in found.rollouts
        ]
        assert {r.old for r in found.rollouts} == {0.0, 1.0} if which == "base" else True
    assert rescore(folder, toy_task(), "winner", "test").evaluated == 80


def test_another_rubric_scores_what_was_kept(folder: StudyFolder) -> None:
    found = again(
        folder, Criterion("idea", lambda e, p, s: "idea" in p.answer), Criterion("one", lambda e, p, s: len(s) == 1)
    )
    kept = rollouts_of(folder, "base", "dev")
    assert [r.new for r in found.rollouts] == [1.0 if "idea" in r.outputs["answer"] else 0.5 for r in kept]
    assert found.criteria == ("idea", "one")
    gated = Criterion("gate", lambda e, p, s: s[0].outputs["answer"] == p.answer != "no idea", 0, gate=1.0)
    assert [r.new for r in again(folder, Criterion("idea", lambda e, p, s: 1), gated).rollouts] == [
        r.total for r in kept
    ]


def test_a_criterion_that_reads_tokens_gives_no_value_and_is_named(folder: StudyFolder) -> None:
    def ids(e, p, s):
        return len(s[0].completion.completion_ids) < 9

    found = again(folder, Criterion("ids", ids), Criterion("said", lambda e, p, s: "answer" in s[0].completion.text))
    assert found.lacking == {"ids": "kept rollouts have no completion_ids"}
    assert {r.new for r in found.rollouts} == {None}
    assert {tuple(r.by_criterion) for r in found.rollouts} == {("said",)}
    broken = again(folder, Criterion("broken", lambda e, p, s: p.nothing), Criterion("fine", lambda e, p, s: 1))
    assert broken.lacking["broken"].startswith("criterion 'broken' raised AttributeError")


def test_counts_of_tokens_are_kept_where_somebody_counted() -> None:
    one, other = (KeptCompletion("a b", (), (), (), "stop", "", counted=counted) for counted in ((7, 2), None))
    assert (one.lengths, other.lengths, one.text) == ((7, 2), None, "a b")
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        with pytest.raises(NotKeptError, match=name):
            getattr(one, name)


def test_what_is_cut_moved_or_failed_is_said(folder: StudyFolder, tmp_path: Path) -> None:
    long = toy_task(program=lambda: dspy.Predict("question -> answer"))
    kept = SampledRollout("dev-0", {"question": "1000 + 1"}, {"answer": "1001"}, {"answer": cut("1" * 9000, 4000)})
    failed = replace(kept, outputs={}, failure="policy", reason="no answer", total=0.0)
    lost = replace(failed, failure="infrastructure", total=None)
    rows = [_rescored(long, r, dict(long.examples("dev"))["dev-0"], {}) for r in (kept, failed, lost)]
    assert [(r.old, r.new, r.failure) for r in rows] == [
        (None, 0.0, None),
        (0.0, 0.0, "policy"),
        (None, None, "infrastructure"),
    ]
    moved = again(folder, Criterion("same", lambda e, p, s: p.answer == e.answer), dev=toy_task().train[:60])
    assert moved.notes == (
        "8 of 8 rollouts have examples that the task no longer has so: criteria read the kept fields",
    )
    kept_scores = [r.by_criterion["right"] for r in rollouts_of(folder, "base", "dev")]
    assert [r.new for r in moved.rollouts] == kept_scores


class Place(BaseModel):
    city: str


def test_outputs_have_the_types_that_the_program_gives_them() -> None:
    task = toy_task(
        program=lambda: dspy.Predict(
            dspy.Signature({"q": (str, dspy.InputField()), "at": (Place, dspy.OutputField())})
        ),
        rubric=Rubric(
            [Criterion("rome", lambda e, p, s: p.at.city == "Rome" and s[0].outputs["at"]["city"] == "Rome")]
        ),
    )
    step = SampledStep("self", "", "", {}, {"at": {"city": "Rome"}})
    kept = SampledRollout("x", {"q": "where?"}, {}, {"at": {"city": "Rome"}}, (step, step))
    assert _rescored(task, kept, None, {}).new == 1.0


def test_occurrences_are_counted() -> None:
    seen: list[Step] = []
    task = toy_task(rubric=Rubric([Criterion("see", lambda e, p, s: seen.extend(s) or 1)]))
    steps = tuple(SampledStep(name, "p", "c", failed=name == "b") for name in "aba")
    _rescored(task, SampledRollout("x", {"question": "q"}, {}, {"answer": ""}, steps), None, {})
    assert [(s.predictor, s.occurrence, s.failed) for s in seen] == [("a", 0, False), ("b", 0, True), ("a", 1, False)]


def test_a_study_that_kept_none(tmp_path: Path) -> None:
    evaluator = Evaluator.of(toy_task(), ToyEngine(), EvaluationStore(tmp_path), 0)
    evaluator(toy_task().base_candidate())
    with pytest.raises(UsageError, match="has nothing to show yet"):
        rescore(StudyFolder(tmp_path, "none"), toy_task(), "base", "dev")


class TestCommand:
    def rubric(self, folder: Path) -> Path:
        (folder / "strict.toml").write_text(
            '[[criterion]]\nname = "right"\nkind = "task"\nweight = 1\n'
            '[[criterion]]\nname = "number"\nkind = "task"\nweight = 3\n'
            '[[criterion]]\nname = "ids"\nkind = "python"\ncheck = "ids.py:ids"\nweight = 0\n'
        )
        (folder / "ids.py").write_text("def ids(e, p, s): return bool(s[0].completion.logprobs)\n")
        return folder / "strict.toml"

    def test_table(self, run: Run, folder: StudyFolder, tmp_path: Path) -> None:
        status, out, _ = run("rescore", "mine", "base", "--home", folder.home)
        assert status == 0
        assert "mine · base · dev: 8 of 60 rollouts were kept, and these are scored again" in out
        status, out, _ = run("rescore", "mine", "base", "--home", folder.home, "--rubric", self.rubric(tmp_path))
        assert status == 0
        assert "warning: ids gives no value: kept rollouts have no logprobs" in out
        assert "mean" in out

    def test_json(self, run: Run, folder: StudyFolder, tmp_path: Path) -> None:
        file = self.rubric(tmp_path)
        file.write_text(file.read_text().split('[[criterion]]\nname = "ids"')[0])
        status, out, _ = run("rescore", "mine", "base", "--home", folder.home, "--rubric", file, "--json")
        found, kept = json.loads(out), rollouts_of(folder, "base", "dev")
        assert (status, found["kept"], found["evaluated"], found["lacking"]) == (0, 8, 60, {})
        assert [r["example_id"] for r in found["rollouts"]] == [r.example_id for r in kept]
        assert found["means"]["old"] == sum(r.total or 0 for r in kept) / 8
        assert set(found["means"]) == {"old", "new", "right", "number"}

    def test_wrong_usage_ends_with_2(self, run: Run, folder: StudyFolder, tmp_path: Path) -> None:
        for arguments, said in [
            (["9.9"], "accepted: 0.1"), (["base", "--split", "train"], "accepted: dev, test, far"),
            (["base", "--rubric", tmp_path / "gone.toml"], "gone.toml: cannot be read"),
        ]:  # fmt: skip
            status, _, err = run("rescore", "mine", *arguments, "--home", folder.home)
            assert (status, said in " ".join(err.split())) == (2, True)
