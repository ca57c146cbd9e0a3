"""A policy behind an API, asked over real HTTP on loopback, through the library and the command line.

What it answers is scripted: it is right on a share of the questions that grows with the right wording.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_openai import BROKEN, EMPTY, HANG, MALFORMED, NO_CHOICES, TOO_MANY, Fault, ScriptedOpenAI
from toy import GOOD, toy_task

from colever.config import RemoteSettings, SweepConfig
from colever.engines.lm import open_policy
from colever.engines.remote import RemoteEngine
from colever.errors import BudgetExhausted, InfrastructureError, UsageError
from colever.loading import load_config
from colever.optimizers import space
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate, measure
from colever.types import Candidate, PredictorPrompt, Weights

Run = Callable[..., tuple[int, str, str]]
KEY = "sk-not-to-be-stored-anywhere"

TASK = f"""
import dspy
from colever import Criterion, Rubric, Task

def rows(start, count):
    return [
        dspy.Example(question=f"{{i}} + {{3 * i}}", answer=str(4 * i)).with_inputs("question")
        for i in range(start, start + count)
    ]

class Adder(dspy.Module):
    def __init__(self):
        super().__init__()
        self.solve = dspy.Predict(dspy.Signature("question -> answer", "Solve it."))

    def forward(self, question):
        return self.solve(question=question)

task = Task(
    name="sums", program=Adder, train=rows(0, 16), dev=rows(100, 12), test=rows(200, 12),
    rubric=Rubric([Criterion("right", lambda e, p, s: p.answer.strip() == e.answer)]),
    instructions={{"solve": ("Answer at once.", {GOOD!r})}},
)
"""


def script(messages: list[dict[str, Any]]) -> str:
    """Right on 0.4 of the questions, on 0.7 with the good wording; unparsable on 0.05."""
    question = re.findall(r"(\d+) \+ (\d+)", messages[-1]["content"])[0]
    place = zlib.crc32(" + ".join(question).encode()) % 1000
    if place >= 950:
        return "no idea"
    right = place < (700 if GOOD in messages[0]["content"] else 400)
    return f"[[ ## answer ## ]]\n{sum(map(int, question)) if right else 'no idea'}\n\n[[ ## completed ## ]]"


@pytest.fixture
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(script, models=["org/scripted"]) as opened:
        yield opened


@pytest.fixture
def run(run: Run) -> Run:
    """The same with stderr on one line."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status, out, err = run(*arguments)
        return status, out, " ".join(err.split())

    return call


@pytest.fixture
def home(tmp_path: Path, empty_home: Path) -> Path:
    return Path(shutil.copytree(empty_home, tmp_path / "home"))


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    (tmp_path / "sums.py").write_text(TASK)
    return f"{tmp_path / 'sums.py'}:task"


def opened(server: ScriptedOpenAI, **changes: Any) -> RemoteEngine:
    settings = RemoteSettings(**{"retry_wait": 0.01, "timeout": 30.0, "retries": 2, **changes})
    engine = open_policy(f"api:org/scripted@{server.address}", settings)
    assert isinstance(engine, RemoteEngine)
    return engine


def flags(server: ScriptedOpenAI) -> list[str]:
    settings = ["remote.retry_wait=0.01", "remote.input_price=1", "remote.output_price=10", "prompt.candidates=1",
                "prompt.screen=8", "prompt.examples=8", "prompt.finalists=2", "prompt.demos=2"]  # fmt: skip
    return ["--model", f"api:org/scripted@{server.address}", *(a for s in settings for a in ("--set", s))]


# --- through the library ---------------------------------------------------------------------------


def test_an_evaluation_has_scores_lengths_and_what_it_cost(server: ScriptedOpenAI) -> None:
    engine, task, budget = opened(server, input_price=1.0, output_price=10.0), toy_task(), Budget()
    base, rollouts = measure(task.base_candidate(), task, engine, "dev", seed=0, budget=budget)
    good = evaluate(Candidate({"solve": PredictorPrompt(GOOD)}), task, engine)
    assert base.score < good.score
    assert base.policy_failures > 0
    assert base.infrastructure_failures == 0
    assert 2 < base.completion_tokens["solve"] < 12
    asked = [server.completion(body)["usage"] for body in server.asked[:60]]
    read, wrote = (sum(u[name] for u in asked) for name in ("prompt_tokens", "completion_tokens"))
    spent = budget.spent
    assert (spent.rollouts, spent.prompt_tokens, spent.completion_tokens) == (60, read, wrote)
    assert spent.dollars == pytest.approx((read + 10 * wrote) / 1e6)
    assert server.most <= 8
    (step,) = rollouts[0].steps
    assert (step.predictor, step.completion.prompt_ids, step.completion.completion_ids) == ("solve", (), ())
    assert step.completion.lengths in [(u["prompt_tokens"], u["completion_tokens"]) for u in asked]
    assert step.inputs == {"question": "1000 + 1"}
    assert step.completion.prompt.startswith("system:\n")
    assert "1000 + 1" in step.completion.prompt
    failed = next(r for r in rollouts if r.failure == "policy")
    assert failed.steps[0].failed
    assert failed.steps[0].completion.text == "no idea"


def test_the_same_question_is_asked_again_every_time(server: ScriptedOpenAI) -> None:
    task, engine = toy_task(), opened(server)
    for _ in range(2):
        evaluate(task.base_candidate(), task, engine, limit=5)
    assert len(server.asked) == 10
    assert {(body["temperature"], body["max_tokens"]) for body in server.asked} == {(task.temperature, task.max_tokens)}


@pytest.mark.parametrize("fault", [TOO_MANY, BROKEN, HANG, MALFORMED, NO_CHOICES], ids=lambda f: f"{f.kind}{f.status}")
def test_a_fault_that_passes_is_no_rollouts_failure(fault: Fault) -> None:
    task = toy_task()
    with ScriptedOpenAI(script, models=["org/scripted"], faults=[fault, fault]) as server:
        engine = opened(server, timeout=1.0 if fault is HANG else 30.0)
        found = evaluate(task.base_candidate(), task, engine, limit=20)
    assert found.infrastructure_failures == 0
    assert len(server.asked) == 22 or fault is HANG  # where others keep the machine busy, more may take too long


def test_a_fault_that_stays_gives_no_score_and_too_many_stop_the_run() -> None:
    task = toy_task()
    with ScriptedOpenAI(script, models=["org/scripted"], faults=[BROKEN] * 3) as server:
        found = evaluate(task.base_candidate(), task, opened(server, concurrency=1), limit=20)
        assert found.infrastructure_failures == 1
        assert found.scores[0] is None
        assert None not in found.scores[1:]
    with ScriptedOpenAI(script, models=["org/scripted"], always=BROKEN) as server:
        with pytest.raises(InfrastructureError, match=r"20 of 20 rollouts.*org/scripted at http.*failed 3 times"):
            evaluate(task.base_candidate(), task, opened(server), limit=20)
        assert len(server.asked) == 60


def test_an_empty_answer_is_the_policys_failure() -> None:
    task = toy_task()
    with ScriptedOpenAI(script, models=["org/scripted"], always=EMPTY) as server:
        found = evaluate(task.base_candidate(), task, opened(server), limit=5)
    assert (found.policy_failures, found.infrastructure_failures, found.score) == (5, 0, 0.0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=400, code="context_length_exceeded"),
        Fault(status=400, message="This model's maximum context length is 64 tokens. However, you requested 90 tokens"),
    ],
)
def test_a_prompt_that_is_too_long_is_the_policys_failure(fault: Fault) -> None:
    task = toy_task()
    with ScriptedOpenAI(script, models=["org/scripted"], always=fault) as server:
        found = evaluate(task.base_candidate(), task, opened(server), limit=5)
        assert len(server.asked) == 5
    assert (found.policy_failures, found.infrastructure_failures) == (5, 0)


def test_a_setting_that_is_too_large_is_not() -> None:
    said = "'max_tokens' is too large: 64. This model's maximum context length is 32 tokens"
    task = toy_task()
    fault = Fault(status=400, message=said)
    with (
        ScriptedOpenAI(script, models=["org/scripted"], always=fault) as server,
        pytest.raises(InfrastructureError, match="too large: 64"),
    ):
        evaluate(task.base_candidate(), task, opened(server), limit=5)


def test_a_refused_key_stops_at_once_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", KEY)
    task, fault = toy_task(), Fault(status=401, message=f"not {KEY}")
    with ScriptedOpenAI(script, models=["org/scripted"], always=fault) as server:
        with pytest.raises(UsageError, match=r"not \[HOSTED_VLLM_API_KEY\]"):
            evaluate(task.base_candidate(), task, opened(server, concurrency=1), limit=20)
        assert len(server.asked) == 1


def test_a_cap_in_dollars_stops_the_next_batch(server: ScriptedOpenAI) -> None:
    task, engine = toy_task(), opened(server, input_price=1000.0)
    budget = Budget({"dollars": 0.01})
    evaluate(task.base_candidate(), task, engine, budget=budget, limit=2)
    with pytest.raises(BudgetExhausted, match=r"dollars=0\.01 is reached"):
        evaluate(task.base_candidate(), task, engine, budget=budget, limit=2)
    assert len(server.asked) == 2


def test_an_engine_is_its_model_and_address_and_takes_no_weights(server: ScriptedOpenAI) -> None:
    engine = opened(server)
    assert engine.digest == opened(server, input_price=3.0).digest
    engine.load(Weights())
    with pytest.raises(UsageError, match="no weights can be loaded"):
        engine.load(Weights("lora", "somewhere", "abc"))


def test_openais_reasoning_models_get_room_and_no_temperature() -> None:
    with ScriptedOpenAI(script, models=["gpt-5-mini"]) as server:
        engine = open_policy(f"api:gpt-5-mini@{server.address}", RemoteSettings())
        task = toy_task()
        evaluate(task.base_candidate(), task, engine, limit=1)
        assert server.asked[0]["max_tokens"] == 16000
        assert "temperature" not in server.asked[0]


def test_a_providers_model_is_priced_by_the_list_that_comes_with_dspy() -> None:
    from dspy import lm15

    from colever.engines.price import Price
    from colever.engines.remote_model import remote_model

    price = Price(remote_model("openai/gpt-5-mini", "--model"), RemoteSettings())
    request = lm15.Request(model="openai/gpt-5-mini", messages=(lm15.Message.user("x"),))
    response = lm15.Response(
        id=None, model="gpt-5-mini", message=lm15.Message.assistant([lm15.TextPart("y")]), finish_reason="stop",
        usage=lm15.Usage(input_tokens=1_000_000, output_tokens=100_000),
    )  # fmt: skip
    assert price.cost(request, response).dollars == pytest.approx(0.25 + 0.2)


# --- what a study of it can be ---------------------------------------------------------------------


def test_the_weight_lever_is_left_out_of_schedules_and_search() -> None:
    config = SweepConfig(task="arithmetic", model="api:openai/gpt-5-mini")
    assert config.schedules == ("p",)
    assert space.schedules(config) == ["p", "p,p", "p,p,p"]
    assert [r.name for r in space.ranges(config)] == ["prompt.demos"]
    assert (config.axis, config.study_name) == ("tokens", "arithmetic-gpt-5-mini-s0")
    assert SweepConfig(task="arithmetic", model="api:a/b@http://127.0.0.1:1/v1").study_name == "arithmetic-b-s0"
    assert load_config(None, flags=config.model_dump()) == config
    with pytest.raises(UsageError, match="flops of an API model"):
        load_config(None, flags={"task": "arithmetic", "model": "api:openai/gpt-5-mini", "axis": "flops"})


# --- through the command line ----------------------------------------------------------------------


def test_what_is_no_model_here_is_told_how_an_api_is_named(run: Run, tmp_path: Path) -> None:
    status, _, err = run("eval", "arithmetic", "--model", "http://127.0.0.1:8000/v1")
    assert (status, "api:NAME@http://127.0.0.1:8000/v1" in err) == (2, True)
    status, _, err = run("eval", "arithmetic", "--model", "api:gpt-4o")
    assert (status, "accepted: PROVIDER/MODEL" in err) == (2, True)
    status, _, err = run("optimize", "arithmetic", "--model", "api:openai/gpt-5-mini", "--schedule", "p,w")
    assert (status, "the weight lever is left out; accepted: p by commas" in err) == (2, True)
    with ScriptedOpenAI(script, models=["one"]) as server:
        status, _, err = run("eval", "arithmetic", "--model", f"api:{server.address}")
        assert (status, f"It serves one; accepted: NAME@{server.address}" in err) == (2, True)
        flags = ["--model", f"api:one@{server.address}", "--home", tmp_path / "home"]
        status, _, err = run("sweep", "arithmetic", *flags, "--prompt-model", "two@http://127.0.0.1:9/v1")
        assert (status, "--prompt-model http://127.0.0.1:9/v1: cannot be reached" in err) == (2, True)
        assert server.asked == []


def test_a_hub_name_that_is_none_is_told_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    status, _, err = run("eval", "arithmetic", "--model", "openai/gpt-nowhere")
    assert (status, "api:openai/gpt-nowhere" in err) == (2, True)


def test_a_sweep_ends_in_a_report_with_its_price_and_stores_no_key(
    run: Run, server: ScriptedOpenAI, home: Path, task_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOSTED_VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    status, out, err = run("sweep", task_file, *flags(server), "--trials", 2, "--home", home, "--json")
    assert status == 0, err
    assert "the weight lever is left out" in err
    report = json.loads(out)
    assert report["model"] == f"api:org/scripted@{server.address}"
    assert {arm["schedule"] for arm in report["arms"]} <= {"p", "p,p", "p,p,p"}
    assert report["table"]["weights"] is None or report["table"]["weights"]["score"] is None
    assert any("the weight lever is left out" in note for note in report["notes"])
    assert set(server.keys) == {f"Bearer {KEY}"}
    folder = home / "studies" / report["study"]
    assert (folder / "report.html").is_file()
    manifest = (folder / "manifest.json").read_text()
    assert f"api:org/scripted@{server.address}" in manifest
    asked = len(server.asked)
    status, out, _ = run("report", report["study"], "--home", home, "--json")
    assert (status, json.loads(out)["table"]) == (0, report["table"])
    status, out, err = run("rollouts", report["study"], "winner", "--prompts", "--home", home)
    assert (status, "system:" in out, "[[ ## question ## ]]" in out) == (0, True, True), err
    assert len(server.asked) == asked  # a report asks nothing
    for file in (f for f in home.rglob("*") if f.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


def test_a_dry_run_says_dollars_and_a_cap_in_dollars_ends_a_sweep(
    run: Run, server: ScriptedOpenAI, home: Path, task_file: str
) -> None:
    status, out, err = run("sweep", task_file, *flags(server), "--trials", 2, "--home", home, "--dry-run", "--json")
    assert status == 0, err
    (estimate,) = json.loads(out).values()
    assert estimate["search"]["dollars"] > 0
    probed = len(server.asked)
    status, out, err = run(
        "sweep", task_file, *flags(server), "--budget", "dollars=0.01", "--home", home, "--trials", 3, "--json"
    )
    assert status == 0, err
    report = json.loads(out)
    assert any("budget: dollars=0.01 is reached" in note for note in report["notes"]), report["notes"]
    paid = [server.completion(body)["usage"] for body in server.asked[probed:]]
    assert 0.01 <= sum(u["prompt_tokens"] + 10 * u["completion_tokens"] for u in paid) / 1e6 < 0.02  # with reading test


def test_optimize_and_rerun(
    run: Run, server: ScriptedOpenAI, home: Path, task_file: str, empty_home: Path, tmp_path: Path
) -> None:
    status, _, err = run("optimize", task_file, "--schedule", "p", *flags(server), "--home", home)
    assert status == 0, err
    into = shutil.copytree(empty_home, tmp_path / "again")
    status, _, err = run("rerun", "sums-task-scripted-s0-p", "--home", home, "--into", into)
    assert "does not promise the same answers" in err
    assert status == 0, err


def test_doctor_names_keys_and_shows_none(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, out, _ = run("doctor", "--home", tmp_path)
    assert "OPENAI_API_KEY" in out
    assert KEY not in out
