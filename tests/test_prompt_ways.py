"""Every way of pulling the prompt lever keeps the same promises; the model that writes prompts is scripted."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from conformance import LeverConformance
from scripted_openai import Messages, ScriptedOpenAI
from small_disk import small_disk
from toy import BAD, GOOD, ToyEngine, toy_task

from colever.config import PROMPT_WAYS, WRITTEN_WAYS, PromptSettings, ProposerSettings
from colever.engines.lm import engine_lm
from colever.errors import BudgetExhausted, InfrastructureError, LeverError, StoreError, TaskError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.tasks.task import Task
from colever.types import Candidate

SMALL: dict[str, Any] = {
    "candidates": 4, "demos": 2, "screen": 8, "examples": 16, "steps": 2, "rollouts": 60, "headroom": "off",
}  # fmt: skip
USERS = str(Path(__file__).parent / "users_teleprompter.py") + ":LastWord"
WAYS = [*PROMPT_WAYS, USERS]


def written(messages: Messages) -> str:
    """A proposal in whichever form is asked for, good and bad ones in turn (by the length of the question)."""
    last = str(messages[-1]["content"])
    asked = last.rpartition("Respond with")[2]
    text = GOOD if len(last) % 3 else BAD
    if "JSON" in asked:
        return json.dumps(dict.fromkeys(re.findall(r"`(\w+)`", asked), text))
    names = [name for name in re.findall(r"`\[\[ ## (\w+) ## \]\]`", asked) if name != "completed"]
    values = {name: json.dumps({"solve": text}) if name == "module_advice" else text for name in names}
    return "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items()) + "[[ ## completed ## ]]"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI(written) as running:
        yield running


def lever_of(way: str, server: ScriptedOpenAI, **settings: Any) -> PromptLever:
    at = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01, retries=1, input_price=1, output_price=2)
    proposer = open_proposer(at, None) if way in WRITTEN_WAYS else None
    return PromptLever(PromptSettings(**{**SMALL, "way": way, **settings}), proposer)


def pull(lever: PromptLever, folder: Path, engine: Any = None, budget: Budget | None = None, **task: Any) -> Pull:
    made = toy_task(**task)
    engine = engine or ToyEngine()
    return lever.improve(made.base_candidate(), made, engine, budget or Budget(), 3, folder, NullProgress())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.rpartition(":")[2])
class TestEveryWay(LeverConformance):
    """Gold, dev and test unread; costs charged; caps kept; equal seeds, equal children: as every lever."""

    @pytest.fixture
    def engine(self) -> ToyEngine:
        return ToyEngine()

    @pytest.fixture(autouse=True)
    def _way(self, way: str, server: ScriptedOpenAI) -> None:
        self.way, self.server = way, server

    def lever(self) -> PromptLever:
        return lever_of(self.way, self.server)

    def task(self, **changes: Any) -> Task:
        return toy_task(**changes)

    def test_prompts_go_through_json_byte_for_byte(self, way: str, tmp_path: Path) -> None:
        child = pull(self.lever(), tmp_path).candidate
        text = json.dumps(child.to_json(), ensure_ascii=False)
        again = Candidate.from_json(json.loads(text))
        assert json.dumps(again.to_json(), ensure_ascii=False) == text
        program = apply_prompts(toy_task().program(), again.prompts)
        assert read_prompts(program) == dict(child.prompts)

    def test_every_predictor_keeps_its_model(self, way: str, tmp_path: Path) -> None:
        lm = engine_lm(ToyEngine())

        def program() -> dspy.Module:
            made = toy_task().program()
            made.set_lm(lm)
            return made

        child = pull(self.lever(), tmp_path, program=program).candidate
        after = apply_prompts(program(), child.prompts)
        assert all(predictor.lm is lm for predictor in after.predictors())

    def test_a_broken_machine_fails_the_pull(self, way: str, tmp_path: Path) -> None:
        class Breaking(ToyEngine):
            def complete(self, request: Any) -> Any:
                if self.calls >= 20:
                    raise ConnectionError("the machine is gone")
                return super().complete(request)

        with pytest.raises(InfrastructureError):
            pull(self.lever(), tmp_path, Breaking())

    def test_a_cap_ends_it_inside_the_optimizers_loop(self, way: str, tmp_path: Path) -> None:
        budget = Budget({"rollouts": 30})
        with pytest.raises(BudgetExhausted, match="rollouts=30"):
            pull(self.lever(), tmp_path, budget=budget)
        assert budget.spent.rollouts <= 30

    def test_what_was_cut_short_is_not_run_again(self, way: str, tmp_path: Path) -> None:
        whole_engine, whole_budget = ToyEngine(), Budget()
        whole = pull(self.lever(), tmp_path / "whole", whole_engine, whole_budget)
        cut = Stopping(whole_engine.calls // 8)
        with pytest.raises(Exception, match="stopped"):
            pull(self.lever(), tmp_path / "cut", cut)
        asked = len(self.server.asked)
        engine, budget = ToyEngine(), Budget()
        resumed = pull(self.lever(), tmp_path / "cut", engine, budget)
        assert resumed == whole
        assert cut.finished + engine.calls == whole_engine.calls
        assert budget.spent.rollouts == whole_budget.spent.rollouts
        assert budget.spent.proposer_calls == whole_budget.spent.proposer_calls
        assert len(self.server.asked) - asked <= whole_budget.spent.proposer_calls

    def test_nothing_is_remembered_from_train_to_dev(self, way: str, tmp_path: Path) -> None:
        """An example of train that is in dev as well is run anew there, and every rollout of an evaluation is."""
        engine, task = ToyEngine(), toy_task(dev=toy_task().train)
        child = pull(self.lever(), tmp_path, engine, dev=task.train).candidate
        before = engine.calls
        evaluate(child, task, engine, "dev")
        assert engine.calls - before == len(task.dev)

    def test_it_plans_no_less_than_it_asks(self, way: str, tmp_path: Path) -> None:
        lever, budget = self.lever(), Budget()
        if way == USERS:
            pytest.skip("nobody knows what a user's optimizer asks")
        most = lever.calls(toy_task().base_candidate(), toy_task())
        pull(lever, tmp_path, budget=budget)
        assert 0 < budget.spent.rollouts <= most.rollouts
        assert budget.spent.proposer_calls <= most.proposer_calls


class Stopping(ToyEngine):
    """Ends like a machine that is switched off, between two batches; ``finished`` were answered in whole batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.finished, self._batch = after, 0, threading.Lock()

    def load(self, weights: Any) -> None:
        if self.calls >= self.after:
            raise RuntimeError("stopped")
        super().load(weights)

    def complete(self, request: Any) -> Any:
        answer = super().complete(request)
        with self._batch:
            self.finished += 1
        return answer


ASKING = [way for way in WRITTEN_WAYS if way != "simba"]  # it asks where rollouts of one example differ: see below


@pytest.mark.parametrize("way", ["choice", "instructions", *ASKING])
def test_it_finds_the_wording_that_helps(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    offered: dict[str, Any] = {} if way in WRITTEN_WAYS else {"instructions": {"solve": (BAD, GOOD)}}
    task = {"instructions": {}, **offered}
    made = pull(lever_of(way, server, candidates=8, examples=40, rollouts=200, demos=0), tmp_path, **task)
    assert GOOD in made.candidate.prompts["solve"].instructions
    assert made.notes["selected"]["child"] > made.notes["selected"]["parent"]


def test_simba_has_rules_written_where_rollouts_differ(server: ScriptedOpenAI, tmp_path: Path) -> None:
    class Wavering(ToyEngine):
        """Right on a question every other time that it is asked."""

        def __init__(self) -> None:
            super().__init__()
            self.asked, self.turn = Counter[str](), threading.Lock()

        def complete(self, request: Any) -> Any:
            question = str(request.messages[-1])
            with self.turn:
                self.asked[question] += 1
                self.skill = 1.0 if self.asked[question] % 2 else -1.0
                return super().complete(request)

    budget = Budget()
    made = pull(lever_of("simba", server, demos=0, screen=12, steps=3), tmp_path, Wavering(), budget)
    assert budget.spent.proposer_calls > 0
    assert any(text in made.candidate.prompts["solve"].instructions for text in (GOOD, BAD, "Solve it."))


@pytest.mark.parametrize("way", ["fewshot", "knn"])
def test_it_finds_demos_that_help(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    made = pull(lever_of(way, server, demos=5, examples=36, screen=24), tmp_path)
    prompt = made.candidate.prompts["solve"]
    assert prompt.demos
    assert (prompt.nearest > 0) == (way == "knn")
    assert made.notes["selected"]["child"] > made.notes["selected"]["parent"]


def test_a_users_teleprompter_is_a_way(server: ScriptedOpenAI, tmp_path: Path) -> None:
    made = pull(lever_of(USERS, server), tmp_path)
    assert made.candidate.prompts["solve"].instructions == "Solve it. Take your time."


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_way_is_told_what_there_is(server: ScriptedOpenAI) -> None:
    with pytest.raises(UsageError, match=r"unknown way 'mipr0'; accepted: choice, .*module:attr"):
        lever_of("mipr0", server)
    with pytest.raises(UsageError, match=r"no_such\.py"):
        lever_of("no_such.py:attr", server)
    with pytest.raises(UsageError, match="no attribute 'NoSuch'"):
        lever_of("dspy:NoSuch", server)
    with pytest.raises(UsageError, match="is a str"):
        lever_of("dspy:__name__", server)


@pytest.mark.parametrize("way", WRITTEN_WAYS)
def test_a_way_without_its_proposer_is_refused(way: str) -> None:
    with pytest.raises(UsageError, match="--prompt-model"):
        PromptLever(PromptSettings(way=way))


def test_instructions_needs_some(server: ScriptedOpenAI, tmp_path: Path) -> None:
    engine = ToyEngine()
    with pytest.raises(UsageError, match="offers no wordings"):
        pull(lever_of("instructions", server), tmp_path, engine, instructions={})
    assert engine.calls == 0


@pytest.mark.parametrize("way", ["fewshot", "knn", "mipro"])
def test_fewer_examples_than_demos_are_refused(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    engine, rows = ToyEngine(), toy_task().train[:9]
    with pytest.raises(UsageError, match=r"4 demos are asked for .* 3 train examples are left"):
        pull(lever_of(way, server, demos=4), tmp_path, engine, train=rows)
    assert engine.calls == 0


@pytest.mark.parametrize("way", ["fewshot", "knn"])
def test_ways_of_demos_need_some(way: str, server: ScriptedOpenAI, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prompt\.demos=0"):
        pull(lever_of(way, server, demos=0), tmp_path)


def test_gepa_needs_rollouts_for_a_first_proposal(server: ScriptedOpenAI, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accepted: 22 or more"):
        pull(lever_of("gepa", server, rollouts=10), tmp_path)


def test_a_criterion_of_no_predictor_is_refused(server: ScriptedOpenAI, tmp_path: Path) -> None:
    from colever.tasks.rubric import Criterion, Rubric

    rubric = Rubric([Criterion("right", lambda e, p, s: True, predictor="solver")])
    with pytest.raises(TaskError, match="'right' speaks of 'solver'"):
        pull(lever_of("choice", server), tmp_path, rubric=rubric)


def test_a_proposer_that_writes_nothing_usable_fails_the_pull(tmp_path: Path) -> None:
    with ScriptedOpenAI(lambda messages: "I would rather not.") as silent:
        lever = lever_of("gepa", silent, rollouts=40)
        with pytest.raises(LeverError, match="usable instruction in 4 reflections; the last reply: 'I would"):
            pull(lever, tmp_path)


@pytest.mark.parametrize("way", ASKING)
def test_a_proposer_that_is_gone_fails_the_pull(way: str, tmp_path: Path) -> None:
    from scripted_openai import BROKEN

    with ScriptedOpenAI(written, always=BROKEN) as broken:
        lever = lever_of(way, broken)
        with pytest.raises(InfrastructureError, match="scripted"):
            pull(lever, tmp_path)


# --- what is equal, what is repeated --------------------------------------------------------------


def test_of_examples_with_equal_inputs_one_is_used(server: ScriptedOpenAI, tmp_path: Path) -> None:
    rows = [*toy_task().train, *toy_task().train[:20]]
    made = pull(lever_of("fewshot", server), tmp_path, train=rows)
    assert made.notes["selected"]["examples"] == 16


def test_a_rollout_that_is_asked_for_twice_is_run_once(server: ScriptedOpenAI, tmp_path: Path) -> None:
    engine, budget = ToyEngine(), Budget()
    made = pull(lever_of("fewshot", server), tmp_path, engine, budget)
    assert made.notes["calls"]["rollouts"] == budget.spent.rollouts == engine.calls
    assert made.notes["calls"]["repeated"] > 0


def test_what_the_optimizer_prints_is_in_a_file(server: ScriptedOpenAI, tmp_path: Path, capfd: Any) -> None:
    pull(lever_of("fewshot", server), tmp_path)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    assert "Bootstrapped" in (tmp_path / "optimizer.log").read_text()


def test_the_proposers_price_is_in_the_ledger(server: ScriptedOpenAI, tmp_path: Path) -> None:
    budget = Budget()
    pull(lever_of("copro", server), tmp_path, budget=budget)
    assert budget.spent.proposer_calls > 0
    assert budget.spent.dollars > 0
    with pytest.raises(BudgetExhausted, match="proposer_calls=2"):
        pull(lever_of("copro", server), tmp_path / "capped", budget=Budget({"proposer_calls": 2}))


def test_a_full_disk_is_named_and_the_same_pull_goes_on(server: ScriptedOpenAI, tmp_path: Path) -> None:
    whole = pull(lever_of("fewshot", server), tmp_path / "whole")
    with small_disk(tmp_path / "cut", 0.02) as disk:
        with pytest.raises(StoreError, match=r"rollouts\.jsonl cannot be written: .*No space left"):
            pull(lever_of("fewshot", server), disk.folder)
        disk.grow(2)
        assert pull(lever_of("fewshot", server), disk.folder) == whole


def test_a_journal_that_is_none_is_refused(server: ScriptedOpenAI, tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").write_text('{"cost": 1}\n')
    with pytest.raises(StoreError, match=r"rollouts\.jsonl cannot be read .* delete it"):
        pull(lever_of("fewshot", server), tmp_path)


def test_an_example_is_not_shown_its_own_answer(tmp_path: Path) -> None:
    """In a rollout of a train example that is among the demos: a weight round after ``knn`` has such."""
    from colever.optimizers.evaluate import run_candidate
    from colever.types import PredictorPrompt

    read: list[str] = []

    class Reading(ToyEngine):
        def complete(self, request: Any) -> Any:
            read.append(" ".join(str(message) for message in request.messages[:-1]))
            return super().complete(request)

    task = toy_task()
    demos = tuple(dict(row.toDict()) for row in task.train[:10])
    shown = Candidate({"solve": PredictorPrompt("Solve it.", demos, 3)})
    run_candidate(shown, task, Reading(), task.examples("train")[:10], split="train", seed=0)
    for prompt in read:
        assert len(re.findall(r"\d+ \+ \d+", prompt)) == 3
    run_candidate(shown, task, engine := Reading(), task.examples("train")[:1], split="train", seed=0)
    assert engine.calls == 1
    assert str(task.train[0].question) not in read[-1]
