"""``papillon``: on rows of PUPA's form, with a server on loopback as the untrusted model and as the judge."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from judging import settings
from scripted_openai import BROKEN, EMPTY, Fault, ScriptedOpenAI
from test_tasks import Scripted, field

from colever.engines.bench import seated
from colever.engines.tally import tallied
from colever.errors import InfrastructureError, TaskError, UsageError
from colever.loading import load_config
from colever.optimizers.sweep import sweep
from colever.pipelines.rollout import run_rollouts
from colever.studies import open_study
from colever.tasks.judges import with_judge
from colever.tasks.load import check_task, load_task
from colever.tasks.papillon import CRAFT, leaked
from colever.tasks.task import Task

CITIES = "Oslo Lima Cairo Quito Delhi Minsk Accra Hanoi Tunis Sofia Dakar Perth".split()


def write_pupa(folder: Path) -> Path:
    rows = [
        {
            "user_query": f"I am Ann {city} of {city}, 4{n} Elm Road. Write to my landlord.",
            "target_response": f"Dear landlord, yours, Ann {city}",
            "pii_units": f"Ann {city}||{city}||4{n} Elm Road",
            "predicted_category": "letters",
        }
        for n, city in enumerate(CITIES * 2)
    ]
    (folder / "pupa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pupa.jsonl"


def script(messages: list[dict[str, Any]]) -> str:
    """As the judge: of two answers the one that is no letter loses, else a tie. As the untrusted model: a letter."""
    text = messages[-1]["content"]
    if "VERDICT: " not in text:
        return "Dear landlord, …"
    letters = [part.partition("\n")[2].startswith(("Dear", "Best")) for part in text.split(" answer ")[1:3]]
    return f"VERDICT: {'tie' if letters[0] == letters[1] else 'A' if letters[0] else 'B'}"


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(script, models=["cloud", "judge"]) as opened:
        yield opened


@pytest.fixture
def task(server: ScriptedOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    monkeypatch.setenv("COLEVER_UNTRUSTED", f"cloud@{server.address}")
    with seated(settings()):
        yield with_judge(load_task("papillon", str(write_pupa(tmp_path))), f"judge@{server.address}")


def run(task: Task, request: str, response: str) -> list[Any]:
    """All of dev; {query} in either text is the row's query."""

    def answer(prompt: str) -> dict[str, object]:
        query = field(prompt, "user_query")
        if "[[ ## llm_response ## ]]\n" in prompt:
            return {"response": response.format(query=query)}
        return {"reasoning": "Leave names out.", "llm_request": request.format(query=query)}

    lm = dspy.LM("scripted/task", engine=Scripted(answer), cache=False)
    return run_rollouts(task.program(), task.examples("dev"), lm=lm, score=task.score, fail=task.fail, concurrency=1)


@pytest.mark.parametrize(("request_", "response", "quality", "privacy"), [
    ("Write to a landlord.", "Best regards", 1, 1),
    ("{query}", "Best regards", 1, 0),
    ("Write to a landlord.", "No.", 0, 1),
    ("{query}", "No.", 0, 0),
])  # fmt: skip
def test_answers_score_as_the_paper_has_it(
    task: Task, request_: str, response: str, quality: float, privacy: float
) -> None:
    check_task(task)
    for rollout in run(task, request_, response):
        assert rollout.score.by_criterion == {"quality": quality, "privacy": privacy}
        assert rollout.score.total == (quality + privacy) / 2


def test_the_untrusted_model_is_sent_the_request_alone_and_is_paid_for(task: Task, server: ScriptedOpenAI) -> None:
    with tallied() as tally:
        rollouts = run(task, "Write to a landlord.", "Best regards")
    asked = [body for body in server.asked if body["model"] == "cloud"]
    assert [body["messages"] for body in asked] == [[{"role": "user", "content": "Write to a landlord."}]]  # kept
    assert tally.cost.judge_calls == 1 + 2 * len(rollouts)
    assert tally.cost.judge_calls == len(server.asked)
    assert rollouts[0].outputs["llm_response"] == "Dear landlord, …"
    judged = [body["messages"][-1]["content"] for body in server.asked if body["model"] == "judge"]
    assert all("input user_query\n" in text and "pii_units" not in text for text in judged)


def test_a_unit_leaks_where_it_stands_as_a_word() -> None:
    units = ["Al", "Elm Road", "A+ (blood)", "1990"]
    assert leaked(units, "Also 19901, an elmroad") == []
    assert leaked(units, "AL lives in elm\n  road, blood A+ (blood).") == ["Al", "Elm Road", "A+ (blood)"]


def test_what_falls_short_is_told_to_the_predictor_that_did_it(task: Task) -> None:
    score = run(task, "{query}", "Best regards")[0].score
    assert "this step: privacy 0.00" in task.rubric.feedback(score, CRAFT)
    assert "nothing is known against this one" in task.rubric.feedback(score, "respond")


@pytest.mark.parametrize(("fault", "failure"), [
    (BROKEN, "infrastructure"), (EMPTY, "infrastructure"),
    (Fault(status=400, code="context_length_exceeded"), "policy"),
])  # fmt: skip
def test_an_untrusted_model_that_fails(fault: Fault, failure: str, tmp_path: Path, monkeypatch: Any) -> None:
    with ScriptedOpenAI(script, models=["cloud"], always=fault) as broken, seated(settings(retries=0)):
        monkeypatch.setenv("COLEVER_UNTRUSTED", f"cloud@{broken.address}")
        task = load_task("papillon", str(write_pupa(tmp_path)))
        lm = dspy.LM("scripted/t", engine=Scripted(lambda p: {"reasoning": "", "llm_request": "x"}), cache=False)
        row = task.examples("dev")[:1]
        if failure == "policy":
            (rollout,) = run_rollouts(task.program(), row, lm=lm, score=task.score, fail=task.fail)
            assert rollout.failure == "policy"
        else:
            with pytest.raises(InfrastructureError, match=r"1 of 1 rollouts failed for reasons other .* cloud at"):
                run_rollouts(task.program(), row, lm=lm, score=task.score, fail=task.fail)


def test_without_its_models_it_says_what_to_give(
    server: ScriptedOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"task": "papillon", "data": str(write_pupa(tmp_path))}
    monkeypatch.delenv("COLEVER_UNTRUSTED", raising=False)
    with pytest.raises(TaskError, match="no untrusted model is named; accepted: COLEVER_UNTRUSTED="):
        open_study(load_config(flags=given))
    monkeypatch.setenv("COLEVER_UNTRUSTED", f"cloud@{server.address}")
    with pytest.raises(TaskError, match=r"'quality' .* is a judge without a model; accepted: --set judge\.model="):
        open_study(load_config(flags=given))
    named = {"judge.model": f"judge@{server.address}"}
    monkeypatch.setenv("COLEVER_UNTRUSTED", f"nobody@{server.address}")
    with pytest.raises(UsageError, match=r"program of task 'papillon': untrusted nobody@.* is not served there"):
        open_study(load_config(flags=given, overrides=named))
    assert not server.asked


def test_both_levers_run_on_the_seed_model(server: ScriptedOpenAI, tmp_path: Path, monkeypatch: Any) -> None:
    """Scores as they come: what is tested is that rollouts, levers, report and a second run go through."""
    monkeypatch.setenv("COLEVER_UNTRUSTED", f"cloud@{server.address}")
    given = {"task": "papillon", "data": str(write_pupa(tmp_path)), "schedules": ["p,w"], "trials": 1}
    small = {"prompt.candidates": 2, "prompt.screen": 2, "prompt.examples": 2, "prompt.finalists": 1, "prompt.demos": 1}
    small |= {"weights.updates": 1, "weights.examples_per_update": 2, "weights.group_size": 2}
    small |= {"judge.model": f"judge@{server.address}", "judge.retry_wait": 0.01}
    config = load_config(flags=given, overrides=small)
    task, engine = open_study(config)
    task = dataclasses.replace(task, max_tokens=96, train=task.train[:4], dev=task.dev[:4], test=task.test[:4])
    report = sweep(config, task, engine, tmp_path / "home")
    assert report.finished
    assert not report.failures
    assert [pulled.lever for pulled in report.path] == ["prompt", "weights"]
    asked = len(server.asked)
    assert asked
    assert sweep(config, task, engine, tmp_path / "home").table == report.table
    assert len(server.asked) == asked
