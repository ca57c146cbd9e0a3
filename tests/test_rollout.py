"""Rollouts: three outcomes, exact tokens, and results that depend on neither threads nor order."""

from __future__ import annotations

import itertools
import random
import threading
import time
from enum import Enum
from pathlib import Path
from typing import Any

import dspy
import pytest

from colever.engines.lm import engine_lm
from colever.errors import InfrastructureError, TaskError, UsageError
from colever.pipelines.plain import plain
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.pipelines.rollout import run_rollouts
from colever.tasks.rubric import Criterion, Rubric
from colever.types import PredictorPrompt, Rollout, Score

EXAMPLES = [(f"e{i}", dspy.Example(question=f"{i} + 1", answer=i + 1).with_inputs("question")) for i in range(6)]


class TwoSteps(dspy.Module):
    """Asks once or twice: the first answer decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer: int")
        self.second = dspy.Predict("question, draft: int -> answer: int")

    def forward(self, question: str) -> dspy.Prediction:
        draft = self.first(question=question).answer
        if draft % 2:
            return dspy.Prediction(answer=draft, parts=[draft])
        return self.second(question=question, draft=draft)


def score(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> Score:
    return Score(float(prediction.answer == example.answer), {"steps": len(steps) / 2})


def fail(reason: str) -> Score:
    return Score(0.0, {}, reason)


@pytest.fixture(scope="module")
def lm(talker_checkpoint: Path) -> dspy.LM:
    return engine_lm(talker_checkpoint)


def run(lm: dspy.LM, program: dspy.Module | None = None, **options: Any) -> list[Rollout]:
    settings = {"score": score, "fail": fail, "samples": 4, "temperature": 1.0, "max_tokens": 12} | options
    return run_rollouts(program or TwoSteps(), settings.pop("examples", EXAMPLES), lm=lm, **settings)


def test_order_groups_and_steps(lm: dspy.LM) -> None:
    rollouts = run(lm)
    assert [(r.example_id, r.sample) for r in rollouts] == [(i, s) for i, _ in EXAMPLES for s in range(4)]
    done = [r for r in rollouts if r.failure is None]
    assert {len(r.steps) for r in done} == {1, 2}
    for rollout in done:
        assert [s.predictor for s in rollout.steps] == ["first", "second"][: len(rollout.steps)]
        assert all(s.occurrence == 0 and not s.failed for s in rollout.steps)
        assert rollout.score is not None
        assert rollout.outputs["answer"] in range(10)
        assert rollout.version == "base"
    assert {tuple(r.outputs) for r in done} == {("answer", "parts"), ("answer",)}


def test_samples_differ_and_a_run_repeats(lm: dspy.LM) -> None:
    rollouts = run(lm, samples=8)
    assert len({r.steps[0].completion.completion_ids for r in rollouts[:8]}) > 3
    assert run(lm, samples=8) == rollouts
    assert run(lm, samples=8, seed=1) != rollouts
    texts = [r.steps[0].completion.text for r in rollouts]
    assert [r.steps[0].completion.text for r in run(lm, samples=8, split="dev")] != texts


@pytest.mark.parametrize("concurrency", [1, 3, 24])
def test_neither_concurrency_nor_arrival_changes_anything(lm: dspy.LM, concurrency: int) -> None:
    class Dawdling(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            time.sleep(random.random() * 0.01)
            return super().forward(question=question)

    def tokens(rollouts: list[Rollout]) -> list[Any]:
        return [[(s.predictor, s.completion.completion_ids) for s in r.steps] for r in rollouts]

    assert tokens(run(lm, Dawdling(), concurrency=concurrency)) == tokens(run(lm))


def test_every_live_rollout_is_in_each_batch(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = lm.engine._generator.run
    monkeypatch.setattr(lm.engine._generator, "run", lambda r, store: (sizes.append(len(r)), generate(r, store))[1])
    rollouts = run(lm)
    assert sizes == [24, sum(len(r.steps) == 2 for r in rollouts)]


def test_prompt_ids_are_those_of_the_rendered_messages_demos_included(lm: dspy.LM) -> None:
    demos = ({"question": "1 + 1", "answer": 2}, {"question": "2 + 5", "answer": 7})
    program = apply_prompts(TwoSteps(), {"first": PredictorPrompt("Add.", demos)})
    for (_, example), rollout in zip(EXAMPLES, run(lm, program, samples=1), strict=True):
        messages = dspy.ChatAdapter().format(program.first.signature, program.first.demos, dict(example.inputs()))
        assert rollout.steps[0].completion.prompt_ids == lm.engine.render(messages)
        assert len(messages) == 6
        assert "Add." in messages[0]["content"]


def test_an_unparsable_answer_is_a_policy_failure_with_its_tokens(lm: dspy.LM) -> None:
    failed = [r for r in run(lm, samples=16) if r.failure is not None]
    assert failed
    for rollout in failed:
        assert rollout.failure == "policy"
        assert rollout.score == fail(rollout.reason)
        assert rollout.steps[-1].failed
        assert rollout.steps[-1].completion.text == "x"
        assert rollout.steps[-1].completion.completion_ids[-1] in lm.engine.end_ids
        assert "'x'" in rollout.reason
        assert rollout.outputs == {}


def test_a_parse_failure_that_the_program_survives_is_still_marked(lm: dspy.LM) -> None:
    class Patient(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            try:
                return dspy.Prediction(answer=self.first(question=question).answer)
            except Exception:  # noqa: BLE001 - what a careless program does
                return dspy.Prediction(answer=0)

    rollouts = run(lm, Patient(), samples=16)
    assert all(r.failure is None for r in rollouts)
    assert {r.steps[0].completion.text == "x" for r in rollouts} == {True, False}
    assert all(r.steps[0].failed == (r.steps[0].completion.text == "x") for r in rollouts)


def test_what_the_program_raises_after_a_call_is_a_policy_failure(lm: dspy.LM) -> None:
    class Strict(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            raise KeyError(f"no tool {self.first(question=question).answer}")

    rollouts = run(lm, Strict())
    assert {r.failure for r in rollouts} == {"policy"}
    assert all(len(r.steps) == 1 for r in rollouts)
    assert any("KeyError" in r.reason for r in rollouts)


def test_what_the_program_raises_before_any_call_stops_the_run(lm: dspy.LM) -> None:
    class Broken(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            raise AttributeError("frist")

    with pytest.raises(TaskError, match="before its first model call: frist"):
        run(lm, Broken())


def test_a_prompt_that_does_not_fit_is_a_policy_failure(lm: dspy.LM) -> None:
    examples = [*EXAMPLES, ("long", dspy.Example(question="9 " * 1200).with_inputs("question"))]
    rollouts = run(lm, examples=examples, samples=1)
    assert rollouts[-1].failure == "policy"
    assert "tokens" in rollouts[-1].reason
    assert all(r.failure != "infrastructure" for r in rollouts)


def failing(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    calls = iter(range(10_000))
    complete = lm.engine.complete

    def broken(request: Any) -> Any:
        answer = complete(request)
        if next(calls) % which == 0:
            raise RuntimeError("the device is gone")
        return answer

    monkeypatch.setattr(lm.engine, "complete", broken)


def test_a_broken_engine_is_never_a_score(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(lm, monkeypatch, 30)
    rollouts = run(lm, samples=8)
    broken = [r for r in rollouts if r.failure == "infrastructure"]
    assert broken
    assert all(r.score is None and "the device is gone" in r.reason for r in broken)
    assert all(r.score is not None for r in rollouts if r.failure != "infrastructure")


def test_too_many_infrastructure_failures_raise(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(lm, monkeypatch, 3)
    with pytest.raises(InfrastructureError, match="the device is gone"):
        run(lm)


def test_an_error_in_the_batch_reaches_every_rollout(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(requests: Any, store: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lm.engine._generator, "run", broken)
    with pytest.raises(InfrastructureError, match=r"24 of 24 .*out of memory"):
        run(lm)


def test_an_error_of_the_scoring_code_stops_the_run(lm: dspy.LM) -> None:
    def bad(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> Score:
        raise TaskError("criterion 'worked' returned 2.0")

    with pytest.raises(TaskError, match=r"returned 2\.0"):
        run(lm, score=bad)


def test_a_judge_that_breaks_while_scoring_makes_no_score(lm: dspy.LM) -> None:
    calls = itertools.count(1)

    def judged(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> float:
        if next(calls) % 12 == 0:
            raise InfrastructureError("the judge answers 503")
        return score(example, prediction, steps).total

    rubric = Rubric([Criterion("judged", judged)])
    rollouts = run(lm, samples=8, score=rubric.score)
    broken = [r for r in rollouts if r.failure == "infrastructure"]
    assert broken
    assert all(r.score is None and r.reason == "scoring: the judge answers 503" for r in broken)
    assert all(r.steps and r.outputs for r in broken)  # what the model did is known all the same
    assert all(r.score is not None for r in rollouts if r.failure != "infrastructure")


def test_an_interrupt_during_a_batch_ends_every_thread(lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(requests: Any, store: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(lm.engine._generator, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lm)
    for thread in [t for t in threading.enumerate() if t.name.startswith("rollout")]:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_program_without_predictors_is_refused(lm: dspy.LM) -> None:
    class Empty(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=1)

    with pytest.raises(TaskError, match="no predictors"):
        run(lm, Empty())


def test_a_program_that_returns_no_prediction_is_refused(lm: dspy.LM) -> None:
    class Bare(TwoSteps):
        def forward(self, question: str) -> Any:
            return "7"

    with pytest.raises(TaskError, match="returned str"):
        run(lm, Bare())


def test_the_program_that_is_run_stays_as_it_was(lm: dspy.LM) -> None:
    class Growing(TwoSteps):
        def forward(self, question: str) -> dspy.Prediction:
            self.first.demos.append(dspy.Example(question="1", answer=1))
            self.seen = question
            return super().forward(question=question)

    program = Growing()
    own = dspy.LM("openai/none")
    program.first.lm = own
    rollouts = run(lm, program)
    assert len({len(r.steps[0].completion.prompt_ids) for r in rollouts}) == 1  # one added demo each, no more
    assert program.first.demos == []
    assert program.first.lm is own
    assert program.second.lm is None
    assert not hasattr(program, "seen")
    assert lm.history == []


def test_any_other_lm_works_without_tokens() -> None:
    other = dspy.utils.DummyLM({"": {"answer": "1"}})
    rollouts = run(other, samples=1)
    assert [r.outputs["answer"] for r in rollouts] == [1] * 6
    assert all(r.failure is None and r.version == "" for r in rollouts)
    for rollout in rollouts:
        assert [s.predictor for s in rollout.steps] == ["first", "second"][: len(rollout.steps)]
        assert [s.outputs for s in rollout.steps] == [{"answer": 1}] * len(rollout.steps)
        assert all("answer" in s.completion.text and s.completion.lengths is None for s in rollout.steps)


def test_what_any_other_lm_wrote_is_kept_where_it_cannot_be_parsed() -> None:
    rollouts = run(dspy.utils.DummyLM({"": {"other": "1"}}), samples=1)
    assert all(r.failure == "policy" and [s.failed for s in r.steps] == [True] for r in rollouts)
    assert all("other" in r.steps[0].completion.text for r in rollouts)


def test_progress_is_told(lm: dspy.LM) -> None:
    seen: list[int] = []
    run(lm, on_done=seen.append, concurrency=5)
    assert sorted(seen) == list(range(1, 25))


def test_prompts_are_read_and_set() -> None:
    demos = ({"question": "1 + 1", "answer": 2},)
    prompts = {"first": PredictorPrompt("Add.", demos), "second": PredictorPrompt("Check.")}
    program = apply_prompts(TwoSteps(), prompts)
    assert read_prompts(program) == prompts
    assert read_prompts(apply_prompts(program, {"first": PredictorPrompt("Sum.")}))["second"].instructions == "Check."
    with pytest.raises(UsageError, match=r"third.*first, second"):
        apply_prompts(TwoSteps(), {"third": PredictorPrompt("x")})


class Team(Enum):
    RED = "red"


class Route(dspy.Signature):
    question: str = dspy.InputField()
    team: Team = dspy.OutputField()


def test_a_typed_field_is_shown_in_a_demo_as_dspy_shows_it() -> None:
    demos = [{"question": "a", "team": team} for team in (Team.RED, plain(Team.RED))]
    typed, kept = (dspy.ChatAdapter().format(Route, [demo], {"question": "b"}) for demo in demos)
    assert plain([{"team": Team.RED}]) == [{"team": "red"}]
    assert kept == typed
