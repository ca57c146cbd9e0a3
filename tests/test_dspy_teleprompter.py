"""The weight lever as a DSPy optimizer: it learns from a plain metric, spares the student, and fits BetterTogether."""

from __future__ import annotations

import dspy
import pytest
import torch
from dspy_parts import ADAPTER, Pick, Picker, high_share, is_high, words

import colever
from colever import WeightTeleprompter
from colever.engines.lm import open_engine
from colever.errors import BudgetExhausted, TaskError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.teleprompter import metric_rubric
from colever.types import Weights

SMALL = {"updates": 8, "examples_per_update": 4, "group_size": 8, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return open_engine(tiny_checkpoint)


@pytest.fixture(autouse=True)
def _seams(engine, finetune_home):
    engine.load(Weights())
    with dspy.context(adapter=ADAPTER):
        yield


@pytest.fixture
def student(engine, digit_weights) -> Picker:
    program = Picker()
    program.set_lm(colever.engine_lm(engine, weights=digit_weights, max_tokens=24))
    return program


def answers(program: dspy.Module) -> list[str]:
    return [program(**example.inputs()).answer for example in words(5)]


def test_it_learns_from_a_metric_and_spares_the_student(engine, student, finetune_home, tmp_path):
    lm, before, demos = student.pick.lm, answers(student), [dspy.Example(word="w3", answer="3")]
    share, name = high_share(lm, demos=demos), lm.model
    student.pick.demos = demos
    teleprompter = WeightTeleprompter(is_high, **{**SMALL, "updates": 16})
    program = teleprompter.compile(student, trainset=words(8))

    assert high_share(program.pick.lm, demos=demos) > share + 0.2
    assert program.pick.demos == student.pick.demos == demos
    assert program._compiled
    assert engine.version == engine.named.find(program.pick.lm.model).digest  # the engine ends with the trained weights
    assert teleprompter.pull.notes["updates"] == 16
    assert max(gap for _, gap in teleprompter.pull.metrics["logprob_gap"]) < 1e-4  # trained on what was sampled

    assert student.pick.lm is lm
    assert lm.model == name
    student.pick.demos = []
    assert answers(student) == before

    program.save(tmp_path / "program.json")
    loaded = Picker()
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    weights = loaded.pick.lm.engine.named.find(loaded.pick.lm.model)
    assert weights.path.startswith(str(finetune_home))
    assert answers(loaded) == answers(program)


def test_the_engines_meter_holds_all_that_it_cost(engine, student, monkeypatch):
    from colever.optimizers import teleprompter

    ledgers = []
    monkeypatch.setattr(teleprompter, "Budget", lambda caps: ledgers.append(Budget(caps)) or ledgers[-1])
    before = engine.meter
    WeightTeleprompter(is_high, **{**SMALL, "updates": 2}).compile(student, trainset=words(4))
    spent, ledger = engine.meter - before, ledgers[-1].spent
    assert spent.trained_tokens == ledger.trained_tokens > 0
    assert spent.completion_tokens == ledger.completion_tokens > 0
    assert spent.flops == pytest.approx(ledger.flops)


def test_demos_are_in_the_prompts_that_are_trained_on(engine, student, monkeypatch):
    from colever.optimizers import weight_lever

    seen, real = [], weight_lever.training_batch

    def looked_at(rollouts, **kwargs):
        seen.extend(engine.tokenizer.decode(list(s.completion.prompt_ids)) for r in rollouts for s in r.steps)
        return real(rollouts, **kwargs)

    monkeypatch.setattr(weight_lever, "training_batch", looked_at)
    student.pick.demos = [dspy.Example(word="a demo of its own", answer="3")]
    WeightTeleprompter(is_high, **{**SMALL, "updates": 1}).compile(student, trainset=words(4))
    assert len(seen) == 32
    assert all("a demo of its own" in prompt for prompt in seen)


class Twice(dspy.Module):
    """Two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict(Pick), dspy.Predict(Pick)

    def forward(self, word: str) -> dspy.Prediction:
        return self.second(word=self.first(word=word).answer)


def test_predictors_that_share_a_model_go_on_sharing_one(engine, digit_weights):
    lm = colever.engine_lm(engine, weights=digit_weights, max_tokens=24)
    with dspy.context(lm=lm):  # configured, not set on the program
        program = WeightTeleprompter(is_high, **{**SMALL, "updates": 1}).compile(Twice(), trainset=words(4))
    assert program.first.lm is program.second.lm
    assert program.first.lm.model not in (lm.model, f"colever/{engine.name}@base")


def test_a_compile_that_was_cut_goes_on_in_its_folder(engine, student, tmp_path):
    how = {**SMALL, "updates": 4, "save_every": 1}
    whole = WeightTeleprompter(is_high, folder=tmp_path / "whole", **how).compile(student, trainset=words(8))
    with pytest.raises(BudgetExhausted):
        WeightTeleprompter(is_high, folder=tmp_path / "cut", budget={"rollouts": 64}, **how).compile(
            student, trainset=words(8)
        )
    resumed = WeightTeleprompter(is_high, folder=tmp_path / "cut", **how).compile(student, trainset=words(8))
    assert resumed.pick.lm.model == whole.pick.lm.model  # the digest: the same weights
    assert len(list((tmp_path / "cut").iterdir())) == 1


@pytest.mark.parametrize(("value", "score"), [
    (True, 1.0), (0.25, 0.25), (dspy.Prediction(score=0.5, feedback="half"), 0.5), ({"score": 1}, 1.0),
])  # fmt: skip
def test_what_a_metric_may_return(value, score):
    rubric = metric_rubric(lambda example, prediction, trace=None: value)
    assert rubric.score(dspy.Example(), dspy.Prediction(), ()).total == score


@pytest.mark.parametrize(("value", "reason"), [
    (3, "accepted: a number in"), (-1.0, "accepted: a number in"), (float("nan"), "accepted: a number in"),
    (None, "the metric returned None"), (dspy.Prediction(feedback="none"), "the metric returned None"),
])  # fmt: skip
def test_what_it_may_not_return_is_said(value, reason):
    with pytest.raises(TaskError, match=reason):
        metric_rubric(lambda example, prediction: value).score(dspy.Example(), dspy.Prediction(), ())


def test_a_metric_out_of_range_stops_the_compile_and_the_parent_comes_back(engine, student):
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    with pytest.raises(TaskError, match="metric"):
        WeightTeleprompter(lambda e, p, trace=None: 7.0, **SMALL).compile(student, trainset=words(4))
    engine.load(Weights())
    assert all(torch.equal(before[name], p) for name, p in engine.model.named_parameters())
    assert answers(student) == answers(student)  # the engine is free again


@pytest.mark.parametrize(("arguments", "reason"), [
    ({}, "exactly one"),
    ({"metric": is_high, "rubric": metric_rubric(is_high)}, "exactly one"),
    ({"metric": "accuracy"}, "accepted: a function"),
    ({"metric": is_high, "steps": 3}, "steps: unknown key; accepted: .*updates"),
    ({"metric": is_high, "group_size": 1}, "group_size"),
    ({"metric": is_high, "budget": {"hours": 1}}, "unknown key 'hours'"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_named(arguments, reason):
    with pytest.raises(UsageError, match=reason):
        WeightTeleprompter(**arguments)


def test_programs_that_cannot_be_trained_are_named(engine, student, digit_weights):
    teleprompter = WeightTeleprompter(is_high, **SMALL)
    with dspy.context(lm=None), pytest.raises(UsageError, match="'pick' uses no language model"):
        teleprompter.compile(Picker(), trainset=words(2))
    with pytest.raises(UsageError, match="trainset is empty"):
        teleprompter.compile(student, trainset=[])
    with pytest.raises(UsageError, match="repeat an id"):
        teleprompter.compile(student, trainset=[dspy.Example(id=1, word="a").with_inputs("word")] * 2)
    mixed = Twice()
    mixed.first.lm = colever.engine_lm(engine, weights=digit_weights)
    mixed.second.lm = colever.engine_lm(engine, weights=Weights())
    with pytest.raises(UsageError, match="same weights"):
        teleprompter.compile(mixed, trainset=words(2))


def test_a_step_of_better_together(student):
    """Prompts, then weights, on DSPy's own scores: each candidate keeps the weights that it was made with."""
    lm = student.pick.lm
    together = dspy.BetterTogether(
        metric=is_high,
        p=dspy.BootstrapFewShotWithRandomSearch(
            metric=is_high, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=1
        ),
        w=WeightTeleprompter(is_high, **SMALL),
    )
    with dspy.context(lm=lm):  # the prompt optimizer takes the program's language model off and uses this one
        best = together.compile(student, trainset=words(8), valset=words(6), strategy="p -> w", num_threads=1)
    scores = {c["strategy"]: c["score"] for c in best.candidate_programs}
    programs = {c["strategy"]: c["program"] for c in best.candidate_programs}
    assert not best.flag_compilation_error_occurred
    assert set(scores) == {"", "p", "p -> w"}
    assert programs["p -> w"].pick.demos == programs["p"].pick.demos
    assert programs[""].pick.lm.model == programs["p"].pick.lm.model == lm.model
    assert programs["p -> w"].pick.lm.model != lm.model
    demos = programs["p"].pick.demos
    assert high_share(programs["p -> w"].pick.lm, demos=demos) > 0.2 + high_share(lm, demos=demos)
    evaluate = dspy.Evaluate(devset=words(6), metric=is_high, num_threads=1)
    assert {s: evaluate(p).score for s, p in programs.items()} == scores  # still, after all that was trained
