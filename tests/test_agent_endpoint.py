"""The endpoint that agents ask, as the openai client knows it, and the three outcomes of an agent's run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from agents import SYSTEM, TOOL, ask, roll, task_on, write_caller

from colever.engines.lm import engine_lm, open_engine
from colever.engines.transformers import TransformersEngine
from colever.errors import InfrastructureError, TaskError
from colever.pipelines.rollout import Attempt, run_attempts


@pytest.fixture(scope="module")
def seed():
    return open_engine("seed")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory):
    return open_engine(write_caller(tmp_path_factory.mktemp("caller")))


# --- the endpoint ---------------------------------------------------------------------------------


def test_a_stream_says_the_same(seed, caller) -> None:
    def streams(connection: Any, question: str) -> str:
        whole, client = ask(connection, question), connection.client()
        chunks = list(
            client.chat.completions.create(
                model="any", stream=True, stream_options={"include_usage": True},
                messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            )
        )  # fmt: skip
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said == whole.content
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].usage.completion_tokens > 0
        return said

    assert [r.failure for r in roll(seed, task_on(streams))] == [None] * 8


def test_what_is_wrong_is_said_as_openai_says_it(seed) -> None:
    kept: list[Any] = []

    def wrong(connection: Any, question: str) -> str:
        kept.append(connection)
        client = connection.client()
        assert [model.id for model in client.models.list()] == ["policy"]
        for options, said in (
            ({"n": 2}, "n: accepted: 1"),
            ({"tools": [TOOL], "tool_choice": "required"}, "accepted: auto, none"),
            ({"response_format": {"type": "json_object"}}, "response_format: accepted: text"),
            ({"logprobs": True}, "logprobs: not done here"),
            ({"max_tokens": -1}, "max_tokens: accepted"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot'; accepted"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ):
            with pytest.raises(openai.BadRequestError, match=said) as caught:
                client.chat.completions.create(
                    **{"model": "any", "messages": [{"role": "user", "content": "x"}], **options}
                )
            assert caught.value.type == "invalid_request_error"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="any", input="x")
        stranger = openai.OpenAI(base_url=connection.base_url, api_key="sk-none", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="no rollout has this key"):
            stranger.models.list()
        return ask(connection, question).content

    assert [r.failure for r in roll(seed, task_on(wrong, 2))] == [None, None]
    with pytest.raises(openai.AuthenticationError, match="has ended"):
        ask(kept[0], "Are you there?")


def test_an_agent_whose_every_request_is_refused_stops_the_run(seed) -> None:
    def swallows(connection: Any, question: str) -> str:
        try:
            return ask(connection, question, n=3).content
        except openai.OpenAIError:
            return "nothing"

    with pytest.raises(TaskError, match="requests were refused: n: accepted: 1"):
        roll(seed, task_on(swallows))


def test_an_agent_with_another_prompt_than_the_tasks_stops_the_run(seed) -> None:
    with pytest.raises(TaskError, match="none of the agent's requests had one of its prompts"):
        roll(seed, task_on(lambda connection, question: ask(connection, question, system="Be nice.").content))


# --- three outcomes -------------------------------------------------------------------------------


def test_what_an_agent_raises_after_a_call_is_the_policys_failure(seed) -> None:
    def picky(connection: Any, question: str) -> str:
        raise ValueError(f"cannot read {ask(connection, question).content!r}")

    for rollout in roll(seed, task_on(picky)):
        assert rollout.failure == "policy"
        assert rollout.reason.startswith("ValueError: cannot read ")
        assert rollout.score is not None
        assert rollout.score.total == 0.0
        assert rollout.steps[0].completion.completion_ids


def test_no_answer_and_no_end_are_the_policys_failures_too(seed) -> None:
    def endless(connection: Any, question: str) -> str:
        while True:
            ask(connection, question)

    for run, said in ((endless, "no end in 3 requests"), (lambda c, question: ask(c, question) and None, "no answer")):
        rollouts = roll(seed, task_on(run, calls=3))
        assert all(r.failure == "policy" and said in r.reason for r in rollouts)


def test_what_an_agent_raises_before_any_call_stops_the_run(seed) -> None:
    def broken(connection: Any, question: str) -> str:
        raise KeyError("no such setting")

    with pytest.raises(TaskError, match="before its first model call"):
        roll(seed, task_on(broken))


def test_an_agent_may_shorten_what_is_too_long(seed) -> None:
    def long(connection: Any, question: str) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(connection, "word " * 5000)
        assert caught.value.code == "context_length_exceeded"
        return ask(connection, question).content

    def too_long(connection: Any, question: str) -> str:
        return ask(connection, "word " * 5000).content

    assert {r.failure for r in roll(seed, task_on(long))} == {None}
    rollouts = roll(seed, task_on(too_long))
    assert {r.failure for r in rollouts} == {"policy"}
    assert "ContextWindowExceededError" in rollouts[0].reason


class Lossy(TransformersEngine):
    """Loses its device whenever a prompt holds these words."""

    words, asked = "number 3", 0

    def complete_ids(self, prompt_ids: Any, config: Any, model: str) -> Any:
        if self.words in self.tokenizer.decode(prompt_ids):
            self.asked += 1
            raise RuntimeError("the device is lost")
        return super().complete_ids(prompt_ids, config, model)


def test_an_agent_that_catches_everything_hides_no_broken_engine(seed) -> None:
    def stoic(connection: Any, question: str) -> str:
        client = openai.OpenAI(base_url=connection.base_url, api_key=connection.api_key)  # with its two retries
        try:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            return client.chat.completions.create(model="any", messages=messages).choices[0].message.content
        except Exception:  # noqa: BLE001 - as careless agents do
            return "a perfectly long answer that the rubric would pay in full"

    engine = Lossy(seed.source, name="seed")
    rollouts = roll(engine, task_on(stoic, 12))
    assert [r.failure for r in rollouts] == [None] * 3 + ["infrastructure"] + [None] * 8
    assert rollouts[3].score is None
    assert "the device is lost" in rollouts[3].reason
    assert engine.asked == 1
    engine.words = "number"
    with pytest.raises(InfrastructureError, match="12 of 12 rollouts failed"):
        roll(engine, task_on(stoic, 12))


def test_an_agent_that_hangs_is_left_behind(seed) -> None:
    forever = threading.Event()

    def hangs(connection: Any, question: str) -> str:
        ask(connection, question)
        return str(forever.wait())

    task = task_on(lambda connection, question: ask(connection, question).content, 12)
    stuck = task_on(hangs, seconds=1.0).program()
    attempts = [
        Attempt(stuck if place == 3 else task.program(), name, example)
        for place, (name, example) in enumerate(task.examples("train"))
    ]
    rollouts = run_attempts(attempts, lm=engine_lm(seed), score=task.score, fail=task.fail)
    forever.set()
    assert [r.failure for r in rollouts] == [None] * 3 + ["infrastructure"] + [None] * 8
    assert "more than 1 s of its own time" in rollouts[3].reason


def test_a_client_that_does_not_wait_is_no_answer(seed) -> None:
    gave_up = threading.Event()

    class Slow(TransformersEngine):
        def complete_ids(self, prompt_ids: Any, config: Any, model: str) -> Any:
            if "number 3" in self.tokenizer.decode(prompt_ids):
                gave_up.wait()
            return super().complete_ids(prompt_ids, config, model)

    def hasty(connection: Any, question: str) -> str:
        try:
            return ask(connection, question, **({"timeout": 1.0} if "number 3" in question else {})).content
        except openai.APITimeoutError:
            gave_up.set()
            return "a perfectly long answer that the rubric would pay in full"

    rollouts = roll(Slow(seed.source, name="seed"), task_on(hasty, 12))
    assert [r.failure for r in rollouts] == [None] * 3 + ["infrastructure"] + [None] * 8
    assert "hung up before the model had answered" in rollouts[3].reason


def test_what_an_agent_cannot_reach_is_the_infrastructures_failure(seed) -> None:
    def unplugged(connection: Any, question: str) -> str:
        said = ask(connection, question).content
        if "number 3" in question:
            openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0).models.list()
        return said

    assert [r.failure for r in roll(seed, task_on(unplugged, 12))].count("infrastructure") == 1


def test_messages_that_a_template_refuses_are_the_agents_to_mend(tmp_path: Path) -> None:
    engine = open_engine(write_caller(tmp_path / "strict"))
    engine.chat._tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TaskError, match="takes no such messages: roles must alternate"):
        roll(engine, task_on(lambda connection, question: ask(connection, question).content))
