"""Prompts folded into weights: sampled behind long prompts, trained behind the task's own, token id by token id."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import dspy
import pytest
from conformance import LeverConformance
from dspy_parts import ADAPTER, Picker, is_high, words
from test_predictor_adapters import pair_task
from test_program_shapes import Agent, Branch, Loop, Twins, Watch, size, write_actor
from test_weight_lever import improve, make_task, settings

import colever
from colever import WeightTeleprompter
from colever.config import SweepConfig, WeightSettings
from colever.engines.lm import engine_lm, open_engine
from colever.errors import BudgetExhausted, LeverError, UsageError
from colever.optimizers import weight_lever
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.folding import prompts_to_fold_into
from colever.optimizers.lever import NullProgress
from colever.optimizers.space import ranges
from colever.optimizers.weight_lever import WeightLever
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.pipelines.rollout import run_rollouts
from colever.tasks.load import load_task
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt, Rollout, Score, Weights

pytestmark = pytest.mark.usefixtures("base_weights")

PROGRAMS = {"loop": Loop, "twins": Twins, "branch": Branch, "agent": Agent}


def lengthened(task: Task) -> Candidate:
    """Another instruction for every predictor, and two demos of its own fields."""
    prompts = {}
    for name, predictor in task.program().named_predictors():
        fields = [*predictor.signature.input_fields, *predictor.signature.output_fields]
        demos = tuple({field: str(i) for field in fields} for i in (3, 4))
        prompts[name] = PredictorPrompt(f"{predictor.signature.instructions} Mind the examples.", demos)
    return Candidate(prompts)


def shapes_task(program: type[dspy.Module]) -> Task:
    examples = [dspy.Example(word=f"w{i}").with_inputs("word") for i in range(4)]
    return Task("shapes", program, examples, examples, examples, Rubric([Criterion("size", size)]), max_tokens=12)


@pytest.fixture(scope="module")
def engines(talker_checkpoint, tmp_path_factory):
    talker, actor = open_engine(talker_checkpoint), open_engine(write_actor(tmp_path_factory.mktemp("actor")))
    return {"agent": actor} | dict.fromkeys(("loop", "twins", "branch"), talker)


def roll(engine, program: dspy.Module, task: Task, samples: int = 4, **options) -> list[Rollout]:
    return run_rollouts(
        program, task.examples("train"), lm=engine_lm(engine), score=task.score, fail=task.fail, samples=samples,
        temperature=1.0, max_tokens=task.max_tokens, **options,
    )  # fmt: skip


def asked(engine, program: dspy.Module, predictor: str, inputs: Mapping[str, object]) -> tuple[int, ...]:
    """The prompt ids that the engine is asked with where this predictor gets these inputs."""

    class One(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = program

        def forward(self, word: str) -> dspy.Prediction:
            return dict(self.inner.named_predictors())[predictor](**inputs)

    rollouts = run_rollouts(
        One(), [("one", dspy.Example(word="").with_inputs("word"))], lm=engine_lm(engine),
        score=lambda *_: Score(0.0, {}), fail=lambda reason: Score(0.0, {}), max_tokens=2,
    )  # fmt: skip
    return rollouts[0].steps[0].completion.prompt_ids


# --- the second prompt of a call -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_short_ids_are_those_that_the_short_program_would_be_asked_with(engines, name):
    engine, task = engines[name], shapes_task(PROGRAMS[name])
    base = task.base_candidate().prompts
    long = apply_prompts(task.program(), lengthened(task).prompts)
    short = apply_prompts(task.program(), base)
    rollouts = roll(engine, long, task, short=base)
    steps = [s for r in rollouts for s in r.steps]
    assert {s.predictor for s in steps} == set(base)
    assert len({len(r.steps) for r in rollouts}) > 1 or name == "twins"
    for step in {s.completion.prompt_ids: s for s in steps}.values():
        assert step.short_ids == asked(engine, short, step.predictor, step.inputs)
        assert step.completion.prompt_ids == asked(engine, long, step.predictor, step.inputs)
        assert len(step.short_ids) < len(step.completion.prompt_ids)


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_else_depends_on_them(engines, name):
    engine, task = engines[name], shapes_task(PROGRAMS[name])
    long = apply_prompts(task.program(), lengthened(task).prompts)
    plain, kept = roll(engine, long, task), roll(engine, long, task, short=task.base_candidate().prompts)
    assert all(s.short_ids == () for r in plain for s in r.steps)
    bare = [dataclasses.replace(r, steps=tuple(dataclasses.replace(s, short_ids=()) for s in r.steps)) for r in kept]
    assert bare == plain


def test_predictors_with_one_long_prompt_keep_their_own_short_ones(engines):
    task = shapes_task(Twins)
    short = {"one": PredictorPrompt("First."), "two": PredictorPrompt("Second, and longer.")}
    for rollout in roll(engines["twins"], task.program(), task, short=short):
        ids = {s.predictor: s for s in rollout.steps}
        if len(ids) == 2:
            assert ids["one"].completion.prompt_ids == ids["two"].completion.prompt_ids
            assert len(ids["one"].short_ids) < len(ids["two"].short_ids)


class Mixed(dspy.Module):
    """A predictor, one that is made as the program runs, and a bare call."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("word -> answer: int")

    def forward(self, word: str) -> dspy.Prediction:
        found = self.say(word=word)
        dspy.Predict("word -> answer: int")(word=word)
        dspy.settings.lm("say a digit")
        return found


def test_what_no_predictor_of_the_program_asks_keeps_its_prompt(engines):
    task = shapes_task(Mixed)
    long = apply_prompts(task.program(), lengthened(task).prompts)
    whole = [r for r in roll(engines["loop"], long, task, short=task.base_candidate().prompts) if len(r.steps) == 3]
    assert whole
    for first, made, bare in (r.steps for r in whole):
        assert first.predictor == "say"
        assert len(first.short_ids) < len(first.completion.prompt_ids)
        assert (made.predictor, bare.predictor) == ("", "")
        assert (made.short_ids, bare.short_ids) == (made.completion.prompt_ids, bare.completion.prompt_ids)


class OwnAdapter(dspy.Module):
    """A program that formats its prompts itself: nobody sees their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("word -> answer: int")

    def forward(self, word: str) -> dspy.Prediction:
        with dspy.context(adapter=ADAPTER):
            return self.say(word=word)


def test_a_prompt_that_another_adapter_made_is_refused(engines, tmp_path):
    task = shapes_task(OwnAdapter)
    how = settings(updates=1, fold=True)
    with pytest.raises(LeverError, match=r"'say' carries no token ids of its short prompt"):
        improve(engines["loop"], tmp_path, how, task, parent=lengthened(task))
    engines["loop"].load(Weights())


# --- the lever -----------------------------------------------------------------------------------------


class TestFoldingLever(LeverConformance):
    def lever(self) -> WeightLever:
        return WeightLever(settings(updates=2, fold=True))

    def task(self, **changes) -> Task:
        return dataclasses.replace(make_task(), **changes)

    def parent(self, task: Task) -> Candidate:
        return lengthened(task)


@pytest.mark.parametrize("way", ["grpo", "rejection"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_completions_are_trained_as_sampled_and_behind_the_short_prompts(engines, tmp_path, monkeypatch, name, way):
    engine, task = engines[name], shapes_task(PROGRAMS[name])
    engine.load(Weights())
    watch, rollouts, run = Watch(monkeypatch, engine), [], weight_lever.run_rollouts
    monkeypatch.setattr(weight_lever, "run_rollouts", lambda *a, **k: rollouts.append(run(*a, **k)) or rollouts[-1])
    how = settings(updates=2, group_size=6, learning_rate=1e-4, warmup=0, fold=True, way=way, max_grad_norm=1e9)
    done = improve(engine, tmp_path, how, task, parent=lengthened(task))
    assert len(watch.trained) == 2
    for trained, sampled, run_of in zip(watch.trained, watch.sampled, rollouts, strict=True):
        steps = [s for r in run_of for s in r.steps]
        assert trained.total() > 0
        assert not trained - Counter((s.short_ids, s.completion.completion_ids) for s in steps)
        assert not Counter((s.completion.prompt_ids, s.completion.completion_ids) for s in steps) - sampled
        assert not {p for p, _ in trained} & {p for p, _ in sampled}
    assert done.candidate.prompts == task.base_candidate().prompts
    assert done.notes["folded"] is True
    tokens = done.notes["prompt_tokens"]
    assert 0 < tokens["after"] < tokens["before"]
    assert "logprob_gap" not in done.notes
    assert done.notes["alarms"] == []


@pytest.mark.parametrize("way", ["grpo", "rejection"])
def test_where_there_is_nothing_to_fold_the_child_is_that_of_a_plain_pull(engine, tmp_path, way):
    plain = improve(engine, tmp_path / "plain", settings(way=way))
    engine.load(Weights())
    fold = improve(engine, tmp_path / "fold", settings(way=way, fold=True))
    assert fold.candidate.digest == plain.candidate.digest
    assert {n: c for n, c in fold.metrics.items() if "seconds" not in n} == {
        n: c for n, c in plain.metrics.items() if "seconds" not in n
    }
    assert fold.notes["folded"] is False
    assert "nothing to fold" in fold.notes["fold"]
    assert "folded" not in plain.notes


def test_what_there_is_to_fold():
    task = make_task()
    base = task.base_candidate()
    assert prompts_to_fold_into(task, base) is None
    assert prompts_to_fold_into(task, Candidate({})) is None
    worded = Candidate({"say": PredictorPrompt("Sing.")})
    shown = Candidate({"say": PredictorPrompt(base.prompts["say"].instructions, ({"word": "a", "answer": "b"},))})
    assert prompts_to_fold_into(task, worded) == prompts_to_fold_into(task, shown) == base.prompts


@pytest.mark.parametrize("changes", [
    {}, {"way": "rejection"}, {"peft": "lora"}, {"validation": 2, "validate_every": 1, "patience": 9},
])  # fmt: skip
def test_a_folded_pull_that_was_cut_ends_as_the_whole_one(engine, tmp_path, changes):
    task, how = make_task(), settings(fold=True, **changes)
    whole = improve(engine, tmp_path / "whole", how, task, parent=lengthened(task))
    engine.load(Weights())
    budget = Budget({"rollouts": 3 * (8 + how.validation)})
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path / "cut", how, task, budget, parent=lengthened(task))
    resumed = improve(engine, tmp_path / "cut", how, task, parent=lengthened(task))
    assert resumed.candidate == dataclasses.replace(whole.candidate, weights=resumed.candidate.weights)
    assert resumed.candidate.weights.digest == whole.candidate.weights.digest
    assert resumed.notes == whole.notes


def test_a_pull_that_folds_does_not_go_on_from_one_that_did_not(engine, tmp_path):
    task = make_task()
    improve(engine, tmp_path, settings(updates=2), task, parent=lengthened(task))
    engine.load(Weights())
    pull = improve(engine, tmp_path, settings(updates=2, fold=True), task, parent=lengthened(task))
    assert len(pull.metrics["fold_gap"]) == 2


def test_held_out_examples_are_answered_behind_the_short_prompts(engine, tmp_path, monkeypatch):
    seen, run = [], weight_lever.run_rollouts

    def watched(program, examples, **options):
        seen.append((read_prompts(program), options["samples"], options["short"]))
        return run(program, examples, **options)

    monkeypatch.setattr(weight_lever, "run_rollouts", watched)
    task = make_task()
    long, base = lengthened(task).prompts, task.base_candidate().prompts
    how = settings(updates=2, validation=2, validate_every=1, patience=9, fold=True)
    improve(engine, tmp_path, how, task, parent=lengthened(task))
    looks, sampled = ([s for s in seen if s[1] == n] for n in (1, how.group_size))
    assert len(looks) == 3
    assert all(prompts == base and short is None for prompts, _, short in looks)
    assert all(prompts == long and short == base for prompts, _, short in sampled)


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_the_kl_penalty_is_to_the_base_model_behind_the_short_prompts(engine, tmp_path, peft):
    task = make_task()
    pull = improve(engine, tmp_path, settings(updates=3, beta=0.1, peft=peft, fold=True), task, parent=lengthened(task))
    kl = [v for _, v in pull.metrics["kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 0


def test_every_predictors_own_adapter_learns_behind_its_short_prompt(engine, tmp_path):
    task, how = pair_task(), settings(updates=2, peft="lora", adapters="per_predictor", fold=True)
    pull = improve(engine, tmp_path, how, task, parent=lengthened(task))
    assert pull.candidate.prompts == task.base_candidate().prompts
    assert pull.notes["folded"] is True
    assert 0 <= evaluate(pull.candidate, task, engine).score <= 1


# --- groups that are all equally good ----------------------------------------------------------------------


def test_likelihood_imitates_long_prompts_that_are_always_right(engine, tmp_path):
    task = make_task(lambda e, p, s: 1.0)
    how = settings(updates=3, fold=True, way="rejection")
    pull = improve(engine, tmp_path, how, task, parent=lengthened(task))
    assert [v for _, v in pull.metrics["trained_rows"]] == [8.0] * 3
    assert pull.notes["constant_share"] == 0
    gaps = [v for _, v in pull.metrics["fold_gap"]]
    assert gaps[0] > 0  # a long prompt's own completions are likelier behind it


def test_likelihood_does_not_imitate_what_is_always_wrong(engine, tmp_path):
    task = make_task(lambda e, p, s: 0.0)
    with pytest.raises(LeverError, match="constant"):
        improve(engine, tmp_path, settings(empty_updates=2, fold=True, way="rejection"), task, parent=lengthened(task))


def test_grpo_says_so_where_long_prompts_leave_nothing_to_compare(engine, tmp_path):
    """Without a single row the child would be the task's prompts on the parent's weights: the prompts lost."""
    task = make_task(lambda e, p, s: 1.0)
    with pytest.raises(LeverError, match=r"weights\.way=rejection"):
        improve(engine, tmp_path, settings(empty_updates=2, fold=True), task, parent=lengthened(task))


# --- doors and limits ---------------------------------------------------------------------------------------


def test_it_is_not_searched():
    with pytest.raises(UsageError, match=r"'weights\.fold' is no setting that can be searched"):
        ranges(SweepConfig(task="routing", search={"weights.fold": (0, 1)}))


def test_a_dspy_program_gets_its_demos_folded(engine, digit_weights, finetune_home):
    with dspy.context(adapter=ADAPTER):
        student = Picker()
        student.set_lm(colever.engine_lm(engine, weights=digit_weights, max_tokens=24))
        student.pick.demos = [dspy.Example(word="w3", answer="7"), dspy.Example(word="w4", answer="8")]
        small = {"updates": 2, "examples_per_update": 4, "group_size": 8, "learning_rate": 1e-3, "warmup": 0}
        teleprompter = WeightTeleprompter(is_high, fold=True, way="rejection", **small)
        program = teleprompter.compile(student, trainset=words(8))
    assert teleprompter.pull.notes["folded"] is True
    assert program.pick.demos == []
    assert program.pick.signature.instructions == student.pick.signature.instructions
    assert len(student.pick.demos) == 2


def test_the_seed_model_answers_short_prompts_as_it_did_behind_demos(tmp_path):
    """Routing with demos of the code book: after a few updates its own prompts, which name no code, do far better."""
    task = load_task("routing")
    shown = [row.toDict() for row in {row.topic: row for row in task.train}.values()]
    base = task.base_candidate()
    long = Candidate({
        name: PredictorPrompt(prompt.instructions, tuple({f: row[f] for f in fields} for row in shown))
        for (name, prompt), fields in zip(
            base.prompts.items(), (("ticket", "topic"), ("topic", "entry", "team")), strict=True
        )
    })  # fmt: skip
    engine = open_engine("seed")
    before = evaluate(base, task, engine, limit=96)
    how = WeightSettings(way="rejection", updates=6, learning_rate=3e-4, warmup=0, fold=True)
    pull = WeightLever(how).improve(long, task, engine, Budget(), 0, tmp_path, NullProgress())
    after = evaluate(pull.candidate, task, engine, limit=96)
    gaps = [v for _, v in pull.metrics["fold_gap"]]
    assert gaps[-1] < 0.6 * gaps[0]
    assert after.score > before.score + 0.2
    assert after.gold > before.gold + 0.4
