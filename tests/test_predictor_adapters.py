"""One LoRA adapter per predictor: sampled, trained, saved and resumed as if each were alone on the model."""

from __future__ import annotations

import dataclasses
import json
import shutil

import dspy
import pytest
import torch
from dspy.utils.exceptions import AdapterParseError, LMInvalidRequestError
from pydantic import ValidationError
from test_weight_lever import improve, settings

import colever
from colever.config import WeightSettings
from colever.engines.adapters import INDEX_FILE, PredictorAdapters, adapter_folders, peft_names
from colever.engines.generation import TokenRequest
from colever.engines.lm import engine_lm, open_engine
from colever.errors import BudgetExhausted, StoreError, UsageError
from colever.loading import load_config
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import evaluate
from colever.optimizers.trainable import resolved
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Candidate, Weights

pytestmark = pytest.mark.usefixtures("base_weights")

NAMES = ["first", "inner.second"]


class Inner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = dspy.Predict(dspy.Signature("word -> answer", "Say a letter."))

    def forward(self, word: str) -> str:
        return said(self.second, word)


class Pair(dspy.Module):
    """Two calls with the same prompt; whatever was written is the answer, even where it cannot be parsed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(dspy.Signature("word -> answer", "Say a letter."))
        self.inner = Inner()

    def forward(self, word: str) -> dspy.Prediction:
        return dspy.Prediction(answer=said(self.first, word) + self.inner(word=word))


class Other(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.third = dspy.Predict("word -> answer")

    def forward(self, word: str) -> dspy.Prediction:
        return dspy.Prediction(answer=said(self.third, word))


class Improvises(Pair):
    """Its second call comes from a predictor that it makes as it runs."""

    def forward(self, word: str) -> dspy.Prediction:
        return dspy.Prediction(answer=said(self.first, word) + said(dspy.Predict("word -> answer"), word))


def said(predictor: dspy.Module, word: str) -> str:
    try:
        return predictor(word=word).answer
    except AdapterParseError as error:
        return error.lm_response


def share(letters: str, text: str) -> float:
    return sum(c in letters for c in text) / max(1, len(text))


def opposite(example, prediction, steps) -> float:
    """The same prompt asks one predictor for early letters and the other for late ones."""
    return (share("abcdefghijklm", steps[0].completion.text) + share("nopqrstuvwxyz", steps[-1].completion.text)) / 2


def pair_task(program=Pair, check=opposite, **changes) -> Task:
    rows = [dspy.Example(word=f"w{i}").with_inputs("word") for i in range(8)]
    fields = {"name": "pair", "program": program, "train": rows, "dev": rows, "test": rows, "max_tokens": 6} | changes
    return Task(rubric=Rubric([Criterion("letters", check)]), **fields)


def each(**changes) -> WeightSettings:
    return settings(**{"peft": "lora", "adapters": "per_predictor", "lora_rank": 4, "lora_alpha": 8, **changes})


@pytest.fixture(scope="module")
def trained(engine, tmp_path_factory):
    """Weights of ``Pair`` after a few large steps, so that its predictors differ."""
    engine.load(Weights())
    how = each(updates=4, learning_rate=2e-2)
    return improve(engine, tmp_path_factory.mktemp("trained"), how, pair_task()).candidate


def single(weights: Weights, predictor: str) -> Weights:
    """One predictor's adapter as weights of its own."""
    return Weights("lora", str(adapter_folders(weights)[predictor]), f"single-{predictor}")


def requests(engine, count: int, predictors: list[str | None]) -> list[TokenRequest]:
    prompts = [engine.render([{"role": "user", "content": f"Say {i} " * (1 + i % 3)}]) for i in range(count)]
    return [
        TokenRequest(prompt, 10, 1.0, seed=100 * i + g, predictor=p)
        for i, prompt in enumerate(prompts)
        for g, p in enumerate(predictors)
    ]


# --- sampling ------------------------------------------------------------------------------------


def test_a_predictor_samples_as_its_adapter_alone_would(engine, trained):
    engine.load(trained.weights)
    wanted = requests(engine, 5, [*NAMES, *NAMES])
    together = engine.generate(wanted)
    assert {m.version for m in together} == {trained.weights.digest}
    ids = {}
    for predictor in NAMES:
        engine.load(trained.weights)
        places = [i for i, r in enumerate(wanted) if r.predictor == predictor]
        by_itself = engine.generate([wanted[i] for i in places])
        engine.load(single(trained.weights, predictor))
        alone = engine.generate([dataclasses.replace(wanted[i], predictor=None) for i in places])
        ids[predictor] = [m.completion_ids for m in alone]
        for i, one, two in zip(places, by_itself, alone, strict=True):
            assert together[i].completion_ids == one.completion_ids == two.completion_ids
            assert together[i].logprobs == pytest.approx(two.logprobs, abs=1e-5)
    assert ids["first"] != ids["inner.second"]


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_trained_tokens_are_the_sampled_ones(engine, tmp_path, peft):
    pull = improve(engine, tmp_path, each(updates=4, learning_rate=1e-2, peft=peft), pair_task())
    assert max(v for _, v in pull.metrics["logprob_gap"]) <= 1e-4
    assert pull.notes["alarms"] == []


def test_rollouts_use_each_predictors_adapter(engine, trained):
    engine.load(trained.weights)
    task = pair_task()
    found: list = []

    def score(example, prediction, steps):
        found.extend(steps)
        return 0.5

    evaluate(trained, dataclasses.replace(task, rubric=Rubric([Criterion("c", score)])), engine)
    assert len(found) == 16
    for predictor in NAMES:
        engine.load(single(trained.weights, predictor))
        own = [s.completion for s in found if s.predictor == predictor]
        greedy = engine.generate([TokenRequest(c.prompt_ids, 6) for c in own])
        assert [g.completion_ids for g in greedy] == [c.completion_ids for c in own]


def test_a_call_that_no_adapter_is_for_is_refused(engine, trained):
    engine.load(trained.weights)
    lm = engine_lm(engine, max_tokens=4)
    with pytest.raises(LMInvalidRequestError, match=r"one LoRA adapter per predictor.*first, inner\.second"):
        lm("hi")
    with pytest.raises(UsageError, match="'third' has no LoRA adapter"):
        evaluate(Candidate({}, trained.weights), pair_task(Other), engine)
    with pytest.raises(UsageError, match="makes as it runs has no LoRA adapter"):
        evaluate(Candidate({}, trained.weights), pair_task(Improvises), engine)
    engine.load(Weights())
    lm("hi")


def test_a_bare_program_uses_its_predictors_adapters_and_a_bare_call_the_only_one(engine, trained, tmp_path):
    engine.load(trained.weights)
    with dspy.context(lm=engine_lm(engine, max_tokens=6), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        inside = Pair()(word="w1").answer
        with pytest.raises(LMInvalidRequestError, match="'third' has no LoRA adapter"):
            Other()(word="w1")
        heard = []
        for predictor in NAMES:
            engine.load(single(trained.weights, predictor))
            heard.append(said(dspy.Predict(dspy.Signature("word -> answer", "Say a letter.")), "w1"))
    assert inside == "".join(heard)
    assert heard[0] != heard[1]
    only = tmp_path / "only"
    PredictorAdapters.load(engine.model, {"first": adapter_folders(trained.weights)["first"]}).save(only)
    engine.touched()
    wanted = requests(engine, 2, [None])
    engine.load(single(trained.weights, "first"))
    alone = engine.generate(wanted)
    engine.load(Weights("lora", str(only), "only"))
    assert [m.completion_ids for m in engine.generate(wanted)] == [m.completion_ids for m in alone]


# --- weights on disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_saved_weights_load_back_to_the_same_samples(engine, tiny_checkpoint, tmp_path, peft):
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    child = improve(engine, tmp_path / "pull", each(peft=peft, learning_rate=1e-2), pair_task()).candidate.weights
    wanted = requests(engine, 3, [*NAMES])
    in_place = engine.generate(wanted)
    moved = dataclasses.replace(child, path=str(tmp_path / "moved"))
    shutil.copytree(child.path, moved.path)
    shutil.rmtree(child.path)
    fresh = open_engine(tiny_checkpoint)
    fresh.load(moved)
    assert [m.completion_ids for m in fresh.generate(wanted)] == [m.completion_ids for m in in_place]
    assert child.kind == "lora"
    assert list(json.loads((tmp_path / "moved" / INDEX_FILE).read_text())["adapters"]) == NAMES
    engine.load(Weights())
    assert "forward" not in engine.model.__dict__
    after = dict(engine.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(p, after[n]) for n, p in before.items())


def test_a_set_that_is_not_whole_is_refused(engine, trained, tmp_path):
    shutil.copytree(trained.weights.path, tmp_path / "set")
    weights = Weights("lora", str(tmp_path / "set"), "broken")
    index = tmp_path / "set" / INDEX_FILE
    good = index.read_text()
    for text in ("[]", '{"adapters": {}}', '{"adapters": {"first": "../set"}}', "no json"):
        index.write_text(text)
        with pytest.raises(StoreError, match=INDEX_FILE):
            engine.load(weights)
    index.write_text(good)
    (adapter_folders(weights)["first"] / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreError, match="missing"):
        engine.load(weights)
    assert engine.version == "base"


def test_names_of_adapters_have_no_dots_and_differ():
    names = peft_names(["a.b", "a_b", "steps[0]", "self", "q_proj"])
    assert len(set(names.values())) == 5
    assert not any("." in n or n in ("self", "q_proj") for n in names.values())


# --- pulls ---------------------------------------------------------------------------------------


def test_predictors_learn_opposite_answers_to_the_same_prompt(engine, tmp_path):
    how = {"updates": 30, "examples_per_update": 4, "group_size": 8, "learning_rate": 1e-2, "save_every": 50}
    reward = [v for _, v in improve(engine, tmp_path / "each", each(**how), pair_task()).metrics["reward"]]
    assert sum(reward[:3]) / 3 < 0.3
    assert sum(reward[-3:]) / 3 > 0.85


@pytest.mark.parametrize(
    "changes",
    [{}, {"peft": "dora", "beta": 0.1}, {"validation": 2, "validate_every": 1, "patience": 9}],
    ids=["lora", "dora and a penalty", "held out"],
)
def test_an_interrupted_pull_ends_with_the_same_weights(engine, tmp_path, changes):
    how = each(**changes)
    whole = improve(engine, tmp_path / "whole", how, pair_task())
    engine.load(Weights())
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path / "cut", how, pair_task(), budget=Budget({"rollouts": 3 * (8 + how.validation)}))
    resumed = improve(engine, tmp_path / "cut", how, pair_task())
    assert resumed.candidate.weights.digest == whole.candidate.weights.digest
    assert resumed.metrics["reward"] == whole.metrics["reward"]
    assert resumed.notes == whole.notes


def test_a_second_round_goes_on_from_the_first(engine, tmp_path):
    one = improve(engine, tmp_path / "1", each(updates=2), pair_task()).candidate
    two = improve(engine, tmp_path / "2", each(updates=2, beta=0.1), pair_task(), parent=one)
    assert two.candidate.weights.digest != one.weights.digest
    assert two.metrics["kl"][0][1] > 1e-7  # to the base model, from which the parent has moved


def test_a_shared_adapter_is_copied_for_each(engine, tmp_path):
    shared = improve(engine, tmp_path / "1", settings(peft="lora", learning_rate=1e-2), pair_task()).candidate
    engine.load(shared.weights)
    wanted = requests(engine, 2, [None])
    parents = [m.completion_ids for m in engine.generate(wanted)]
    adapters = engine.one_adapter_each(NAMES, None)
    for predictor in NAMES:
        copies = engine.generate([dataclasses.replace(r, predictor=predictor) for r in wanted])
        assert [m.completion_ids for m in copies] == parents
    assert len(adapters.model.peft_config) == 2
    engine.touched()
    engine.load(Weights())
    child = improve(engine, tmp_path / "2", each(updates=2), pair_task(), parent=shared).candidate
    files = [f / "adapter_model.safetensors" for f in adapter_folders(child.weights).values()]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_parents_that_cannot_be_trained_on_are_refused(engine, trained, tmp_path):
    with pytest.raises(UsageError, match=r"weights\.adapters=shared.*accepted: weights\.adapters=per_predictor"):
        improve(engine, tmp_path / "1", settings(peft="lora"), pair_task(), parent=trained)
    with pytest.raises(UsageError, match=r"weights\.adapters=shared, weights\.peft=none"):
        improve(engine, tmp_path / "2", settings(peft="none"), pair_task(), parent=trained)
    full = improve(engine, tmp_path / "3", settings(updates=1), pair_task()).candidate
    with pytest.raises(UsageError, match=r"full weights.*weights\.adapters=per_predictor"):
        improve(engine, tmp_path / "4", each(), pair_task(), parent=full)
    with pytest.raises(UsageError, match="'third' has no LoRA adapter"):
        improve(engine, tmp_path / "5", each(), pair_task(Other), parent=Candidate({}, trained.weights))
    with pytest.raises(UsageError, match="makes as it runs"):
        improve(engine, tmp_path / "6", each(), pair_task(Improvises))
    assert engine.adapters is None  # the parent is back


def test_no_adapter_per_predictor_without_adapters():
    with pytest.raises(ValidationError, match=r"weights\.adapters=per_predictor.*weights\.peft=none"):
        WeightSettings(adapters="per_predictor", peft="none")
    with pytest.raises(UsageError, match=r"weights\.adapters=per_predictor.*weights\.peft=none.*accepted"):
        load_config(flags={"task": "t"}, overrides={"weights.adapters": "per_predictor", "weights.peft": "none"})
    with pytest.raises(UsageError, match=r"weights\.adapters=per_predictor.*weights\.peft=none"):
        colever.WeightTeleprompter(lambda e, p: 1.0, adapters="per_predictor", peft="none")
    assert resolved(WeightSettings(adapters="per_predictor"), "seed").peft == "lora"


def test_a_compiled_program_answers_with_its_own_adapters(engine, tmp_path):
    student = Pair()
    student.set_lm(colever.engine_lm(engine, temperature=1.0, max_tokens=6))
    teacher = colever.WeightTeleprompter(
        lambda e, p: share("abcdefghijklm", p.answer), folder=tmp_path, updates=2, examples_per_update=2, group_size=4,
        learning_rate=1e-2, adapters="per_predictor",
    )  # fmt: skip
    compiled = teacher.compile(student, trainset=list(pair_task().train))
    engine.load(Weights())
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        compiled(word="w1")
    assert list(engine.adapters.names) == NAMES
