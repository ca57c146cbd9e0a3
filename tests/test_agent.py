"""Agents that are not DSPy: the openai client over HTTP against real models, and what their rollouts hold."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
from agents import ADD, BROKEN, SYSTEM, TOOL, ask, roll, task_on, write_caller
from dspy import lm15
from scripted_openai import ScriptedOpenAI

from colever.engines.calls import current_call
from colever.engines.generation import TokenRequest
from colever.engines.lm import engine_lm, open_engine
from colever.engines.remote import RemoteEngine
from colever.engines.remote_model import remote_model
from colever.errors import InfrastructureError, TaskError
from colever.pipelines.agent import agent_program
from colever.pipelines.prompts import apply_prompts
from colever.pipelines.rollout import run_rollouts
from colever.tasks.criteria.tool_use import ArgumentsValid, Called, ResultUsed
from colever.types import PredictorPrompt


@pytest.fixture(scope="module")
def seed():
    return open_engine("seed")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory):
    return open_engine(write_caller(tmp_path_factory.mktemp("caller")))


@pytest.fixture(scope="module")
def plain_caller(tmp_path_factory: pytest.TempPathFactory):
    return open_engine(write_caller(tmp_path_factory.mktemp("plain"), tools=False))


def three_turns(connection: Any, question: str) -> str:
    client, messages = connection.client(), [{"role": "system", "content": SYSTEM}]
    for turn in range(3):
        messages.append({"role": "user", "content": f"{question} {turn}"})
        messages.append(client.chat.completions.create(model="any", messages=messages).choices[0].message)
    return messages[-1].content


# --- tokens ---------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_same_conversation_through_the_engine(seed) -> None:
    rollout = roll(seed, task_on(three_turns))[0]
    messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
    for turn, step in enumerate(rollout.steps):
        messages.append({"role": "user", "content": f"What is the pet of number 0? {turn}"})
        [alone] = seed.generate([TokenRequest(step.completion.prompt_ids, 24, 0.0)])
        made = step.completion
        assert seed.tokenizer.decode(made.prompt_ids) == seed.chat.text(messages)
        assert (made.completion_ids, made.text) == (alone.completion_ids, alone.text)
        assert made.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        messages.append({"role": "assistant", "content": made.text})
    assert rollout.steps[0].completion.prompt_ids == seed.render(messages[:2])
    assert [(s.predictor, s.occurrence) for s in rollout.steps] == [("agent", 0), ("agent", 1), ("agent", 2)]
    assert rollout.outputs == {"answer": rollout.steps[-1].completion.text}


def test_a_conversation_goes_on_in_the_tokens_that_were_sampled(seed) -> None:
    """At a high temperature the model spells words as no tokenizer would: rendering anew gives other ids."""
    rollouts = roll(seed, task_on(three_turns), samples=4, temperature=1.5)
    anew = 0
    for rollout in rollouts:
        for before, after in zip(rollout.steps, rollout.steps[1:], strict=False):
            told = (*before.completion.prompt_ids, *before.completion.completion_ids)
            assert after.completion.prompt_ids[: len(told)] == told
            text = seed.tokenizer.decode(after.completion.prompt_ids)
            anew += seed.chat.ids(text) != after.completion.prompt_ids
    assert anew > 0
    assert not any(step.drifted for rollout in rollouts for step in rollout.steps)


def test_a_history_that_the_agent_rewrites_is_tokenized_anew_and_counted(seed) -> None:
    def rewrites(connection: Any, question: str) -> str:
        client, messages = (
            connection.client(),
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "a"}],
        )
        client.chat.completions.create(model="any", messages=messages)
        messages += [{"role": "assistant", "content": "(left out)"}, {"role": "user", "content": question}]
        return client.chat.completions.create(model="any", messages=messages).choices[0].message.content

    for rollout in roll(seed, task_on(rewrites)):
        assert [step.drifted for step in rollout.steps] == [False, True]
        assert "(left out)" in seed.tokenizer.decode(rollout.steps[1].completion.prompt_ids)


def test_an_agents_own_examples_of_answers_are_no_drift(seed) -> None:
    def shows(connection: Any, question: str) -> str:
        shown = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "find pet of Kalo"}]
        for _ in range(2):
            messages = [{"role": "system", "content": SYSTEM}, *shown, {"role": "user", "content": question}]
            made = connection.client().chat.completions.create(model="any", messages=messages)
        return made.choices[0].message.content

    assert not any(step.drifted for rollout in roll(seed, task_on(shows)) for step in rollout.steps)


def test_sixty_four_conversations_do_not_mix(seed) -> None:
    task = task_on(three_turns, 64)
    many, few = roll(seed, task, temperature=1.0), roll(seed, task, temperature=1.0, concurrency=16)
    for rollout, (_, example) in zip(many, task.examples("train"), strict=True):
        for step in rollout.steps:
            read = seed.tokenizer.decode(step.completion.prompt_ids)
            assert read.count(example.question) == step.occurrence + 1
            assert read.count("What is the pet of number") == step.occurrence + 1
    assert [[s.completion.completion_ids for s in r.steps] for r in many] == [
        [s.completion.completion_ids for s in r.steps] for r in few
    ]
    assert [r.score for r in many] == [r.score for r in few]


def test_requests_may_lower_the_limit_and_name_stops(seed) -> None:
    def short(connection: Any, question: str) -> str:
        whole = ask(connection, question).content
        assert ask(connection, question, stop=[whole[3]]).content == whole[: whole.index(whole[3])]
        assert ask(connection, question, max_completion_tokens=500, temperature=2, seed=7).content == whole
        return ask(connection, question, max_tokens=2).content

    for rollout in roll(seed, task_on(short)):
        assert rollout.failure is None, rollout.reason
        assert len(rollout.steps[-1].completion.completion_ids) == 2
        assert rollout.steps[-1].completion.finish_reason == "length"


# --- prompts --------------------------------------------------------------------------------------


def test_a_candidates_prompt_stands_where_the_agents_own_stood(seed) -> None:
    def run(connection: Any, question: str) -> str:
        assert connection.prompt in (SYSTEM, "Answer at once.")
        return ask(connection, question, system=f"{SYSTEM}\nToday is Friday.").content

    task = task_on(run, 2)
    base = roll(seed, task)[0].steps[0].completion
    program = apply_prompts(task.program(), {"agent": PredictorPrompt("Answer at once.")})
    made = run_rollouts(program, task.examples("train"), lm=engine_lm(seed), score=task.score, fail=task.fail)
    changed = made[0].steps[0].completion
    assert f"<|system|>{SYSTEM}\nToday is Friday.<|end|>" in seed.tokenizer.decode(base.prompt_ids)
    assert "<|system|>Answer at once.\nToday is Friday.<|end|>" in seed.tokenizer.decode(changed.prompt_ids)


def test_several_prompts_are_several_predictors(seed) -> None:
    def pair(connection: Any, question: str) -> str:
        plan = ask(connection, question, system="Plan it.").content
        ask(connection, "on my own", system="Something else.")
        return ask(connection, plan, system="Do it.").content

    task = task_on(pair, 2, prompts={"planner": "Plan it.", "doer": "Do it."})
    assert set(task.base_candidate().prompts) == {"planner", "doer"}
    assert [s.predictor for s in roll(seed, task)[0].steps] == ["planner", "", "doer"]


def test_demos_are_earlier_turns(seed) -> None:
    task = task_on(lambda connection, question: ask(connection, question).content, 2)
    demo = {"messages": [{"role": "user", "content": "What is 1?"}], "reply": {"role": "assistant", "content": "one"}}
    program = apply_prompts(task.program(), {"agent": PredictorPrompt(SYSTEM, (demo,))})
    made = run_rollouts(program, task.examples("train"), lm=engine_lm(seed), score=task.score, fail=task.fail)
    read = seed.tokenizer.decode(made[0].steps[0].completion.prompt_ids)
    assert read.startswith(
        f"<|system|>{SYSTEM}<|end|><|user|>What is 1?<|end|><|assistant|>one<|end|><|user|>What is the"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((print, ""), "without a system prompt"),
        ((print, "  "), "accepted: a text that is not empty"),
        (("node agent.js", "x"), "accepted: a function, or a command as a list"),
    ],
)
def test_an_agent_that_cannot_be_one_is_refused_at_once(arguments, said) -> None:
    with pytest.raises(TaskError, match=said):
        agent_program(*arguments)


def test_prompts_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(TaskError, match="the same text"):
        agent_program(print, prompts={"one": "Be brief.", "two": "  Be brief.\n"})
    with pytest.raises(TaskError, match="called 'forward'"):
        agent_program(print, prompts={"forward": "Be brief."})


# --- tools ----------------------------------------------------------------------------------------


def adds(connection: Any, question: str) -> str:
    """OpenAI's own loop around a tool."""
    client, messages = (
        connection.client(),
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
    )
    for _ in range(6):
        choice = client.chat.completions.create(model="any", messages=messages, tools=[TOOL]).choices[0]
        messages.append(choice.message.model_dump())
        assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
        if not choice.message.tool_calls:
            return choice.message.content
        for call in choice.message.tool_calls:
            assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2, "b": 3})
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "5"})
    return "no end"


@pytest.mark.parametrize("which", ["caller", "plain_caller"])
def test_tools_go_to_the_template_and_calls_come_back(which, request) -> None:
    engine = request.getfixturevalue(which)
    assert engine.chat.knows_tools == (which == "caller")
    rollouts = roll(engine, task_on(adds), samples=4, temperature=1.0)
    steps = [(step, after) for r in rollouts for step, after in zip(r.steps, r.steps[1:], strict=False)]
    assert len(steps) > 5
    for step, after in steps:
        assert step.completion.text == ADD
        told = (*step.completion.prompt_ids, *step.completion.completion_ids)
        assert after.completion.prompt_ids[: len(told)] == told
        assert not after.drifted
        behind = engine.tokenizer.decode(after.completion.prompt_ids[len(told) :])
        assert "5" in behind
        assert behind.endswith("<|im_start|>assistant\n")
        assert step.outputs["reply"]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2, "b": 3}}
    read = engine.tokenizer.decode(rollouts[0].steps[0].completion.prompt_ids)
    assert '"name": "add"' in read
    assert SYSTEM in read


def test_a_call_that_is_none_is_text_and_counts_as_unparsed(caller) -> None:
    rollouts = roll(caller, task_on(adds), samples=8, temperature=1.0)
    last = [r.steps[-1] for r in rollouts]
    assert {BROKEN, "5"} <= {step.completion.text for step in last}
    assert all(step.failed == (step.completion.text == BROKEN) for step in last)
    assert all(r.outputs["answer"] in (r.steps[-1].completion.text, "no end") for r in rollouts)


def test_criteria_of_tools_read_an_agents_calls(caller) -> None:
    rollouts = roll(caller, task_on(adds), samples=8, temperature=1.0)
    example, valid = dspy.Example(question="How much?").with_inputs("question"), ArgumentsValid('{"add": ["a", "b"]}')
    for rollout in rollouts:
        made, prediction = [s for s in rollout.steps if s.completion.text == ADD], dspy.Prediction(**rollout.outputs)
        assert Called("add", least=5)(example, prediction, rollout.steps) == min(1.0, len(made) / 5)
        assert valid(example, prediction, rollout.steps) == float(bool(made))
        used = ResultUsed("answer", letters=1)(example, prediction, rollout.steps)
        assert used == (len(rollout.steps) > 1 and rollout.outputs["answer"] == "5")
    assert len({len(rollout.steps) for rollout in rollouts}) > 1


def test_without_tools_nothing_is_a_call(caller) -> None:
    def none(connection: Any, question: str) -> str:
        said = ask(connection, question, tools=[TOOL], tool_choice="none")
        assert said.tool_calls is None
        return said.content

    rollouts = roll(caller, task_on(none), samples=4, temperature=1.0)
    assert ADD in {r.outputs["answer"] for r in rollouts}
    assert '"name": "add"' not in caller.tokenizer.decode(rollouts[0].steps[0].completion.prompt_ids)


# --- models that are asked in words ---------------------------------------------------------------


class Api:
    """An engine that is asked as an API is, and calls a tool until it has a result."""

    name, counts_calls = "api", True

    def __init__(self) -> None:
        self.asked: list[lm15.Request] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Api:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        current_call.get().calls += 1
        self.asked.append(request)
        done = any(m.role == "tool" for m in request.messages)
        part = lm15.TextPart("five") if done else lm15.ToolCallPart(id="x1", name="add", input={"a": 2, "b": 3})
        usage = lm15.Usage(input_tokens=5, output_tokens=2)
        return lm15.Response(
            id=None, model=request.model, message=lm15.Message.assistant([part]), finish_reason="stop", usage=usage
        )


def test_an_apis_own_calls_come_back_and_go_in() -> None:
    engine = Api()
    rollout = roll(engine, task_on(adds, 2))[0]
    assert rollout.outputs == {"answer": "five"}
    assert [(s.predictor, s.occurrence) for s in rollout.steps] == [("agent", 0), ("agent", 1)]
    last = next(r for r in engine.asked if len(r.messages) > 1)
    assert [m.role for m in last.messages] == ["user", "assistant", "tool"]
    assert [t.name for t in last.tools] == ["add"]
    call, result = last.messages[1].parts[-1], last.messages[2].parts[-1]
    assert (call.name, call.input) == ("add", {"a": 2, "b": 3})
    assert result.id == call.id


def test_a_model_behind_an_api_is_asked_with_the_candidates_prompt() -> None:
    with ScriptedOpenAI(lambda messages: f"read: {messages[0]['content']}", always=None) as server:
        engine = RemoteEngine(remote_model(f"api:scripted@{server.address}", "--model"))
        task = task_on(lambda connection, question: ask(connection, question).content, 2)
        program = apply_prompts(task.program(), {"agent": PredictorPrompt("Answer at once.")})
        made = run_rollouts(program, task.examples("train"), lm=engine_lm(engine), score=task.score, fail=task.fail)
    assert [r.outputs["answer"] for r in made] == ["read: Answer at once."] * 2
    assert made[0].steps[0].completion.counted == made[0].steps[0].completion.lengths != (0, 0)


# --- other kinds of agents ------------------------------------------------------------------------


def test_an_agent_may_be_async(seed) -> None:
    async def run(connection: Any, question: str) -> dict[str, Any]:
        messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        made = await connection.async_client().chat.completions.create(model="any", messages=messages)
        return {"answer": made.choices[0].message.content, "asked": question}

    rollout = roll(seed, task_on(run))[0]
    assert rollout.failure is None
    assert set(rollout.outputs) == {"answer", "asked"}


def test_an_agent_may_ask_for_several_things_at_once(seed) -> None:
    async def gathers(connection: Any, question: str) -> str:
        client = connection.async_client()
        asked = [
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{question} {i}"}] for i in range(4)
        ]
        made = await asyncio.gather(
            *(client.chat.completions.create(model="any", messages=messages) for messages in asked)
        )
        return " | ".join(each.choices[0].message.content for each in made)

    task = task_on(gathers)
    rollouts = roll(seed, task)
    assert [r.outputs for r in rollouts] == [r.outputs for r in roll(seed, task)]  # greedy: whichever was first
    for rollout in rollouts:
        assert Counter(rollout.outputs["answer"].split(" | ")) == Counter(s.completion.text for s in rollout.steps)


def test_an_agent_is_a_module_like_any_other(seed) -> None:
    program = task_on(three_turns).program()
    with dspy.context(lm=engine_lm(seed, max_tokens=24)):
        said = program(question="What is the pet of number 0?").answer
    assert said == roll(seed, task_on(three_turns))[0].outputs["answer"]


COMMAND = """
import json, openai, sys
asked = json.load(sys.stdin)
system = json.loads(__import__("os").environ["COLEVER_PROMPTS"])["agent"]
messages = [{"role": "system", "content": system}, {"role": "user", "content": asked["question"]}]
made = openai.OpenAI().chat.completions.create(model="any", messages=messages)
if len(sys.argv) > 1:
    sys.exit("cannot read it")
print("a line of its log")
print(json.dumps({"answer": made.choices[0].message.content}))
"""


def test_an_agent_may_be_a_command(seed, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(COMMAND)
    by_function = roll(seed, task_on(lambda connection, question: ask(connection, question).content, 2))
    rollouts = roll(seed, task_on([sys.executable, str(file)], 2))
    assert [r.outputs for r in rollouts] == [r.outputs for r in by_function]
    assert [r.steps for r in rollouts] == [r.steps for r in by_function]
    failed = roll(seed, task_on([sys.executable, str(file), "fail"], 2))
    assert {r.failure for r in failed} == {"policy"}
    assert "ended with status 1: cannot read it" in failed[0].reason


def test_a_command_that_hangs_is_ended(seed) -> None:
    task = task_on([sys.executable, "-c", "import time; time.sleep(600)"], 2, seconds=0.5)
    with pytest.raises(InfrastructureError, match=r"more than 0\.5 s of its own time"):
        roll(seed, task)
