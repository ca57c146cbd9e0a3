"""A task set of ``verifiers`` as a task, against the real library (extra ``verifiers``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import dspy
import pytest
from test_tasks import Scripted, field

import colever
from colever.errors import InfrastructureError, TaskError
from colever.pipelines.rollout import run_rollouts
from colever.tasks.load import check_task, load_task
from colever.tasks.task import Task
from colever.tasks.verifiers_task import from_verifiers
from colever.types import Completion, Step

vf = pytest.importorskip("verifiers.v1")

from verifiers.v1.graph import MessageNode  # noqa: E402
from verifiers_shout import WORDS, Shout, ShoutConfig, ShoutData, ShoutTask  # noqa: E402

RANGES = {"brevity": (-1, 1), "lower": (1, 0)}
REPLIES: dict[str, Callable[[str], str]] = {
    "right": str.upper,
    "lower case": str,
    "long": lambda word: f"THE WORD IS {word.upper()} AND NOTHING ELSE",
    "wrong": lambda word: "X",
    "empty": lambda word: "",
}


def shout(**more: Any) -> Task:
    return from_verifiers(Shout(ShoutConfig()), **{"ranges": RANGES, "gold": "right", **more})


def theirs(data: ShoutData, reply: str) -> vf.Trace:
    """verifiers' own scoring of a conversation that is written down by hand."""
    task = ShoutTask(data)
    said = [vf.SystemMessage(content=data.system_prompt), vf.UserMessage(content=data.prompt)]
    nodes = [MessageNode(message=m, parent=i - 1 if i else None) for i, m in enumerate(said)]
    nodes.append(MessageNode(message=vf.AssistantMessage(content=reply), parent=1, sampled=True))
    about = vf.TraceTask(type="ShoutTask", data=data)
    trace = vf.Trace(task=about, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes)
    asyncio.run(task.score(trace))
    return trace


class TestScores:
    @pytest.mark.parametrize("kind", REPLIES)
    def test_the_whole_path_scores_as_verifiers_does(self, kind: str) -> None:
        task = shout()
        check_task(task)
        engine = Scripted(lambda prompt: {"reply": REPLIES[kind](field(prompt, "prompt"))})
        lm = dspy.LM("scripted", engine=engine, cache=False)
        rollouts = run_rollouts(
            task.program(), task.examples("test"), lm=lm, score=task.score, fail=task.fail, split="test"
        )
        rows = {task.data.prompt: task.data for task in Shout(ShoutConfig())}
        for rollout, (_, example) in zip(rollouts, task.examples("test"), strict=True):
            trace = theirs(rows[example.prompt], REPLIES[kind](example.prompt))
            own = {name: reward.score for name, reward in trace.rewards.items()}
            values = {"right": own["right"], "brevity": (own["brevity"] + 1) / 2, "lower": 1 - own["lower"]}
            assert rollout.score.by_criterion == pytest.approx(values)
            # the least that the rewards add up to is -1 - 0.5, the most 2 + 1
            assert rollout.score.total == pytest.approx((trace.reward + 1.5) / 4.5)
            assert rollout.score.gold == own["right"]
        assert (rollouts[0].score.total == 1.0) == (kind == "right")

    def test_weights_are_those_of_the_rewards_over_their_ranges(self) -> None:
        task = shout(ranges={**RANGES, "characters": (0, 50)})
        weights = {c.name: c.weight for c in task.rubric.criteria}
        assert weights == {"brevity": 2.0, "lower": 0.5, "right": 2.0, "characters": 0.0}

    def test_a_right_reply_is_known_where_it_is_told(self) -> None:
        task = shout(reply=lambda data: data.answer)
        example = task.train[0]
        assert task.rubric.score(example, dspy.Prediction(reply=example.reply), []).total == 1.0

    def test_a_reward_outside_of_its_range_is_named(self) -> None:
        task = shout(ranges={"lower": (1, 0)})
        with pytest.raises(TaskError, match=r"'brevity' raised.*gave -\d.*accepted: 0 to 1, or ranges=\{'brevity'"):
            task.rubric.score(task.train[0], dspy.Prediction(reply="x" * 80), [])

    def test_a_reply_that_was_cut_short_is_told_apart(self) -> None:
        @vf.reward
        async def whole(self: Any, trace: Any) -> float:
            return float(not trace.is_truncated and trace.num_turns == 1)

        task = from_verifiers(taskset(type("T", (vf.Task,), {"whole": whole})))
        for finish in ("stop", "length", "stop"):
            step = Step("self", 0, Completion("x", (1,), (2,), (0.0,), finish, "base"))
            assert task.rubric.score(task.train[0], dspy.Prediction(reply="x"), [step]).total == (finish == "stop")


class TestRows:
    def test_each_question_is_in_one_split(self) -> None:
        task = shout(sizes=(8, 4, 4))
        splits = [[row.prompt for row in rows] for rows in (task.train, task.dev, task.test)]
        assert [len(rows) for rows in splits] == [8, 4, 4]
        assert sorted(word for words in splits for word in words) == sorted(WORDS[:16])
        assert task.train[0].answer == task.train[0].prompt.upper()
        assert shout(seed=9).train[0].prompt != task.train[0].prompt

    def test_test_rows_of_another_task_set(self) -> None:
        task = shout(test=Shout(ShoutConfig(start=12, stop=20)), sizes=(8, 4, 100))
        assert sorted(row.prompt for row in task.test) == sorted(WORDS[16:])  # those before are the first set's
        check_task(task)

    def test_the_system_prompt_is_the_instruction(self) -> None:
        assert shout().base_candidate().prompts["self"].instructions == "Write the word in capitals."
        assert shout(instruction="Shout.").base_candidate().prompts["self"].instructions == "Shout."

    def test_the_digest_sees_rows_ranges_and_the_code_of_rewards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = shout().digest()
        assert shout().digest() == digest
        assert shout(ranges={**RANGES, "brevity": (-2, 1)}).digest() != digest

        @vf.reward(weight=2.0)
        async def right(self: Any, trace: Any) -> float:
            return 1.0

        monkeypatch.setattr(ShoutTask, "right", right)
        assert shout().digest() != digest


class TestById:
    def test_a_task_set_is_found_by_its_id(self) -> None:
        task = from_verifiers("verifiers-shout", config={"stop": 8}, ranges=RANGES, sizes=(4, 2, 2))
        assert (task.name, len(task.train)) == ("verifiers-shout", 4)

    def test_from_the_command_line_a_range_that_is_needed_is_named(self) -> None:
        with pytest.raises(TaskError, match=r"lower has weight -0.5 .*accepted: ranges=\{'lower': \(worst, best\)\}"):
            load_task("verifiers:verifiers-shout")

    def test_an_id_that_is_not_installed(self) -> None:
        with pytest.raises(TaskError, match="'not-there' cannot be loaded: taskset 'not-there' not found"):
            load_task("verifiers:not-there")

    def test_an_environment_is_its_task_set(self) -> None:
        config = vf.SingleAgentEnvConfig.model_validate({"taskset": {"id": "verifiers-shout"}})
        assert from_verifiers(vf.SingleAgentEnv(config), ranges=RANGES).digest() == shout(gold=None).digest()


def taskset(kind: type, data: Iterable[Any] = (), **attributes: Any) -> Any:
    """A task set of tasks of ``kind``."""
    rows = list(data) or [ShoutData(prompt=word, answer=word) for word in WORDS]
    load = {"load": lambda self: [kind(row) for row in rows], **attributes}
    return type("Few", (vf.Taskset,), load)(vf.TasksetConfig())


class Alone(vf.Task[ShoutData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return 1.0


async def nothing(self: Any, *_: Any, **__: Any) -> float:
    return 0.0


class JudgedConfig(vf.TaskConfig):
    judge: vf.JudgeConfig = vf.JudgeConfig()


class Judged(vf.Task[ShoutData, vf.State, JudgedConfig]):
    right = Alone.right


class InRuntime(Alone):
    @vf.reward
    async def ran(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        return 1.0


class WithTools(Alone):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[Any]:
        return [vf.Toolset(vf.ToolsetConfig())]


def chat(*messages: Any, **more: Any) -> list[ShoutData]:
    return [ShoutData(prompt=list(messages) or None, answer="a", **more)]


USER, SYSTEM, SAID = vf.UserMessage(content="a"), vf.SystemMessage(content="s"), vf.AssistantMessage(content="b")
IMAGE = vf.UserMessage(content=[vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url="a"))])


class TestRefusals:
    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda: taskset(type("T", (Alone,), {"setup": nothing})), r"T has setup\(\)"),
            (lambda: taskset(type("T", (Alone,), {"finalize": nothing})), r"T has finalize\(\)"),
            (lambda: taskset(type("T", (Alone,), {"NEEDS_CONTAINER": True})), "T needs a container"),
            (lambda: taskset(type("T", (Alone,), {"enough": vf.stop(nothing)})), "T stops a conversation in"),
            (lambda: taskset(type("T", (Alone,), {"edit": vf.intercept(nothing)})), r"T rewrites messages in edit\(\)"),
            (lambda: taskset(WithTools), "WithTools has tool servers"),
            (lambda: taskset(Judged), r"Judged asks a judge \(judge\)"),
            (lambda: taskset(InRuntime), "has the reward 'ran', which needs a runtime"),
            (lambda: taskset(Alone, chat()), "row 0 starts with no prompt"),
            (lambda: taskset(Alone, chat(USER, SAID, USER)), "row 0 starts with user, assistant, user"),
            (lambda: taskset(Alone, chat(IMAGE)), "row 0 asks more than plain text"),
            (lambda: taskset(Alone, chat(USER, image="ubuntu")), "row 0 sets image"),
            (lambda: taskset(Alone, toolsets=classmethod(lambda cls, config: [1])), "Few has tool servers"),
        ],
    )
    def test_what_cannot_be_carried_over_is_named(self, made: Callable[[], Any], said: str) -> None:
        with pytest.raises(TaskError, match=f"verifiers: .*{said}.* cannot be carried over; accepted: one text"):
            from_verifiers(made())

    def test_a_chat_of_system_and_user_is_carried_over(self) -> None:
        rows = [ShoutData(prompt=[SYSTEM, vf.UserMessage(content=word)], answer=word) for word in WORDS]
        task = from_verifiers(taskset(Alone, rows))
        assert task.base_candidate().prompts["self"].instructions == "s"
        assert task.rubric.score(task.train[0], dspy.Prediction(reply="a"), []).total == 1.0

    def test_several_system_prompts_need_an_instruction(self) -> None:
        rows = taskset(Alone, [ShoutData(prompt=word, answer=word, system_prompt=word) for word in WORDS])
        with pytest.raises(TaskError, match="20 system prompts; accepted: one for all, or instruction"):
            from_verifiers(rows)
        from_verifiers(rows, instruction="Shout.")

    def test_an_environment_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import verifiers_shout

        class Duel(vf.Env[vf.SingleAgentEnvConfig]):
            async def run(self, task: Any, agents: Any) -> None: ...

        monkeypatch.setattr(verifiers_shout, "__all__", ["Duel", "Shout"])
        monkeypatch.setattr(verifiers_shout, "Duel", Duel, raising=False)
        with pytest.raises(TaskError, match="verifiers-shout is an environment of its own, Duel"):
            from_verifiers("verifiers-shout", ranges=RANGES)

    def test_anything_else(self) -> None:
        with pytest.raises(TaskError, match=r"a list; accepted: a verifiers\.v1 Taskset or SingleAgentEnv, or its id"):
            from_verifiers([])
        with pytest.raises(TaskError, match="gold 'truth'; accepted: a function, or one of brevity, lower, right"):
            shout(gold="truth")
        with pytest.raises(TaskError, match="a range for 'speed'; accepted: brevity, lower, right, characters"):
            shout(ranges={"speed": (0, 1)})
        with pytest.raises(TaskError, match="T has no rewards; accepted: at least one"):
            from_verifiers(taskset(type("T", (vf.Task,), {})))


class TestFailures:
    def scored(self, reward: Any) -> None:
        task = from_verifiers(taskset(type("T", (vf.Task,), {"right": vf.reward(reward)})))
        task.rubric.score(task.train[0], dspy.Prediction(reply="a"), [])

    def test_a_reward_that_raises_is_the_tasks_fault(self) -> None:
        async def reward(self: Any, trace: Any) -> float:
            raise KeyError("x")

        reward.__name__ = "right"
        with pytest.raises(TaskError, match="verifiers: task T scoring: KeyError: 'x'"):
            self.scored(reward)

    def test_a_broken_machine_makes_no_score(self) -> None:
        async def reward(self: Any, trace: Any) -> float:
            raise vf.SandboxError("gone")

        reward.__name__ = "right"
        with pytest.raises(InfrastructureError, match="SandboxError: gone"):
            self.scored(reward)

    def test_several_numbers_of_one_reward_are_refused(self) -> None:
        async def right(self: Any, trace: Any) -> dict[str, float]:
            return {"a": 1.0, "b": 0.0}

        with pytest.raises(TaskError, match="right gave no number of its own, but a, b; accepted: one"):
            self.scored(right)

    def test_a_judge_that_was_asked_is_refused(self) -> None:
        async def right(self: Any, trace: Any) -> float:
            trace.record_judge_call(name="j", request={}, response=vf.JudgeResponse(text="yes"))
            return 1.0

        with pytest.raises(TaskError, match="T asks a judge; accepted: rewards that ask no model"):
            self.scored(right)


def test_the_seed_model_runs_it() -> None:
    task = shout(sizes=(8, 4, 4))
    lm = colever.seed_lm(max_tokens=16)
    rollouts = run_rollouts(
        task.program(), task.examples("test"), lm=lm, score=task.score, fail=task.fail, max_tokens=16, split="test"
    )
    assert [rollout.failure for rollout in rollouts if rollout.failure == "infrastructure"] == []
    assert all(rollout.score is not None and rollout.steps[0].completion.completion_ids for rollout in rollouts)
