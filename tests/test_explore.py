"""``explore``: the town has state, a right walk scores 1 through the whole path, and a wrong one less."""

from __future__ import annotations

import re

import dspy
import pytest
from test_tasks import Scripted, field

from colever.engines.lm import engine_lm, open_engine
from colever.pipelines.rollout import run_rollouts
from colever.tasks.explore import Town, examples, task
from colever.tasks.load import check_task, load_task

ROWS = [*task.train, *task.dev, *task.test, *task.watched["far"]]


def walking(patience: int):
    """Looks and walks on until a pet is seen or ``patience`` looks are over; then takes it and says its name."""

    def answer(prompt: str) -> dict[str, object]:
        notes = field(prompt, "notes")
        if "`[[ ## answer ## ]]`" in prompt:
            return {"answer": notes.split(" = ")[-1]}
        start = re.search(r"garden of (\w+)\?", field(prompt, "question"))[1]
        if notes == "none":
            return {"action": f"find garden of {start}"}
        what, name, found = re.fullmatch(r"(\w+) of (\w+) = (\w+)", notes.split("; ")[-1]).groups()
        looks = notes.count("garden of")
        if what == "street":
            return {"action": f"find garden of {found}"}
        if what == "garden" and looks < patience:
            return {"action": f"find street of {name}" if found == name else f"find pet of {name}"}
        return {"action": "done"}

    return answer


def run(patience: int, rows):
    lm = dspy.LM("scripted/task", engine=Scripted(walking(patience)), cache=False)
    return run_rollouts(task.program(), rows, lm=lm, score=task.score, fail=task.fail, concurrency=1)


def test_a_right_walk_scores_one_however_far_it_is() -> None:
    check_task(load_task("explore"))
    near, far = run(100, task.examples("dev")[:24]), run(100, task.examples("far")[:8])
    assert {(r.failure, r.score.total, r.score.gold) for r in near + far} == {(None, 1.0, 1.0)}
    calls = [r.outputs["calls"] for r in near + far]
    assert min(calls) >= 4
    assert 40 < max(calls) <= 100
    given_up = run(1, task.examples("dev")[:24])
    assert all(0 < r.score.total < 0.5 and r.score.gold == 0 for r in given_up)


def test_a_call_works_only_where_the_walker_stands() -> None:
    town = Town(["A", "B", "C"], 1, "Rex")
    assert town.find("pet", "A") == "nothing"
    assert town.find("garden", "B") == "far"
    assert town.find("garden", "A") == "A"
    assert town.find("street", "A") == "B"
    assert town.find("street", "A") == "far"
    assert town.find("pet", "B") == "nothing"  # not seen yet
    assert town.find("garden", "B") == "Rex"
    assert town.find("pet", "B") == "Rex"
    assert town.taken
    assert (town.find("street", "B"), town.find("street", "C")) == ("C", "A")


def test_towns_are_deterministic_and_their_pets_where_they_say() -> None:
    assert [row.toDict() for row in examples(50, 512, range(1, 11))] == [
        row.toDict() for row in [*task.train, *task.dev, *task.test]
    ]
    assert all(row.pet not in row.places and row.at < len(row.places) for row in ROWS)
    assert {row.at for row in task.watched["far"]} <= set(range(20, 46))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_seed_model_begins_to_look(temperature: float) -> None:
    lm = engine_lm(open_engine("seed"), temperature=temperature, max_tokens=24)
    rollouts = run_rollouts(
        task.program(), task.examples("train")[:8], lm=lm, score=task.score, fail=task.fail, max_tokens=24,
        temperature=temperature, samples=1 + 7 * (temperature > 0),
    )  # fmt: skip
    assert all(r.failure is None for r in rollouts)
    assert any(r.outputs["seen"] for r in rollouts)
