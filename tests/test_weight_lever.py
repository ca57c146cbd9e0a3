"""The weight lever on a tiny random model: it learns, resumes, restores, and trains what was sampled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import dspy
import pytest
import torch
from conformance import LeverConformance
from dspy.utils.exceptions import AdapterParseError

from colever.config import WeightSettings
from colever.engines.weights import ADAPTER_FILE
from colever.errors import BudgetExhausted, LeverError
from colever.optimizers.budget import Budget
from colever.optimizers.curriculum import in_turn
from colever.optimizers.early_stop import EarlyStop
from colever.optimizers.grpo import ProgramTrainer
from colever.optimizers.grpo_settings import trainer_settings
from colever.optimizers.lever import NullProgress
from colever.optimizers.trainable import resolved
from colever.optimizers.weight_lever import WeightLever, hold_out
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Weights

pytestmark = pytest.mark.usefixtures("base_weights")
DORA = pytest.param("dora", marks=pytest.mark.slow)  # the code of lora but for one flag


class Say(dspy.Signature):
    """Say a letter."""

    word: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Echo(dspy.Module):
    """One call; whatever was written is the answer, even where it cannot be parsed."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict(Say)

    def forward(self, word: str) -> dspy.Prediction:
        try:
            return self.say(word=word)
        except AdapterParseError:
            return dspy.Prediction(answer="")


def vowel_share(example, prediction, steps) -> float:
    text = steps[-1].completion.text
    return sum(c in "aeiou" for c in text) / max(1, len(text))


def make_task(check=vowel_share, rows: int = 8, max_tokens: int = 8) -> Task:
    examples = [dspy.Example(word=f"w{i}").with_inputs("word") for i in range(rows)]
    return Task(
        "vowels", Echo, examples, examples, examples, Rubric([Criterion("vowels", check)]), max_tokens=max_tokens
    )


def has_rare_letter(example, prediction, steps) -> float:
    """About one completion in ten, before training."""
    return float(any(c in "abc" for c in steps[-1].completion.text))


def settings(**changes) -> WeightSettings:
    small = {
        "updates": 4,
        "examples_per_update": 2,
        "group_size": 4,
        "learning_rate": 1e-3,
        "save_every": 2,
        "warmup": 1,
        "peft": "none",
    }
    return WeightSettings(**{**small, **changes})


def improve(
    engine, workdir: Path, how: WeightSettings, task: Task | None = None, budget: Budget | None = None, parent=None
):
    task = task or make_task()
    candidate = parent or task.base_candidate()
    return WeightLever(how).improve(candidate, task, engine, budget or Budget(), 3, workdir, NullProgress())


def parameters(engine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in engine.model.named_parameters()}


class TestWeightLever(LeverConformance):
    def lever(self) -> WeightLever:
        return WeightLever(settings(updates=2))

    def task(self, **changes) -> Task:
        return dataclasses.replace(make_task(), **changes)


def test_a_rare_word_becomes_common(engine, tmp_path):
    how = settings(updates=30, examples_per_update=4, group_size=8, learning_rate=2e-3, save_every=50, empty_updates=30)
    pull = improve(engine, tmp_path, how, make_task(has_rare_letter, max_tokens=6))
    reward = [v for _, v in pull.metrics["reward"]]
    assert sum(reward[:3]) / 3 < 0.2
    assert sum(reward[-3:]) / 3 > 0.9


def test_training_on_the_best_rollouts_makes_a_rare_word_common(engine, tmp_path):
    how = settings(
        way="rejection", updates=30, examples_per_update=4, group_size=8, learning_rate=2e-3, save_every=50,
        empty_updates=30,
    )  # fmt: skip
    pull = improve(engine, tmp_path, how, make_task(has_rare_letter, max_tokens=6))
    reward = [v for _, v in pull.metrics["reward"]]
    assert sum(reward[:3]) / 3 < 0.2
    assert sum(reward[-3:]) / 3 > 0.8


def test_an_early_stop_keeps_the_best_weights(engine, tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.5])
    looked: list[dict[str, torch.Tensor]] = []
    look = EarlyStop.look

    def scripted(self, update, score, model):
        looked.append(parameters(engine))
        return look(self, update, next(scores), model)

    monkeypatch.setattr(EarlyStop, "look", scripted)
    how = settings(updates=9, validation=2, validate_every=2, patience=2)
    pull = improve(engine, tmp_path, how)
    assert pull.notes["best_update"] == 2
    assert pull.notes["stopped"].startswith("no better score on 2 held-out examples since update 2")
    assert [u for u, _ in pull.notes["validation"]] == [0, 2, 4, 6]
    assert len(pull.metrics["reward"]) == 6
    engine.load(pull.candidate.weights)
    assert all(torch.equal(p, looked[1][n]) for n, p in parameters(engine).items())
    assert not all(torch.equal(p, looked[3][n]) for n, p in parameters(engine).items())


def test_held_out_examples_are_not_trained_on(engine, tmp_path):
    rows = [(f"train-{i}", i) for i in range(8)]
    kept, held = hold_out(rows, 3, 0)
    assert sorted(kept + held) == rows
    assert len(held) == 3
    assert hold_out(rows, 3, 0) == (kept, held)
    with pytest.raises(LeverError, match=r"weights\.validation=8"):
        hold_out(rows, 8, 0)


@pytest.mark.parametrize("changes", [
    {"validation": 2, "validate_every": 1, "patience": 9}, pytest.param({"curriculum": True}, marks=pytest.mark.slow),
])  # fmt: skip
def test_what_a_pull_remembers_survives_a_cut(engine, tmp_path, changes):
    how = settings(updates=5, save_every=2, **changes)
    whole = improve(engine, tmp_path / "whole", how)
    engine.load(Weights())
    per_update = 8 + how.validation
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path / "cut", how, budget=Budget({"rollouts": 3 * per_update}))
    resumed = improve(engine, tmp_path / "cut", how)
    assert resumed.candidate.weights.digest == whole.candidate.weights.digest
    assert resumed.notes == whole.notes


@pytest.mark.parametrize("peft", ["none", "lora", DORA])
def test_an_interrupted_pull_ends_with_the_same_weights(engine, tmp_path, peft):
    how = settings(peft=peft)
    whole = improve(engine, tmp_path / "whole", how)
    engine.load(Weights())
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path / "cut", how, budget=Budget({"rollouts": 3 * 8}))
    budget = Budget()
    resumed = improve(engine, tmp_path / "cut", how, budget=budget)
    assert resumed.candidate.weights.digest == whole.candidate.weights.digest
    assert resumed.metrics["reward"] == whole.metrics["reward"]
    assert budget.spent.rollouts == 4 * 8  # the work before the cut is charged too
    assert resumed.notes == whole.notes


def test_the_seed_model_is_trained_whole_and_any_other_by_an_adapter(engine, tmp_path):
    assert resolved(WeightSettings(), "seed").peft == "none"
    assert resolved(WeightSettings(), "some/model").peft == "lora"
    assert resolved(WeightSettings(peft="dora"), "seed").peft == "dora"
    assert improve(engine, tmp_path, settings(peft="auto", updates=1)).candidate.weights.kind == "lora"


def test_a_finished_pull_is_not_trained_again(engine, tmp_path):
    first = improve(engine, tmp_path, settings())
    again = improve(engine, tmp_path, settings())
    assert again.candidate == first.candidate
    assert again.metrics == first.metrics


def test_other_settings_do_not_go_on_from_a_checkpoint(engine, tmp_path):
    improve(engine, tmp_path, settings(updates=2))
    engine.load(Weights())
    pull = improve(engine, tmp_path, settings(updates=3))
    assert [u for u, _ in pull.metrics["reward"]] == [0, 1, 2]


@pytest.mark.parametrize("peft", ["none", "lora", DORA])
def test_child_loads_back_and_parent_is_untouched(engine, tmp_path, peft):
    before = parameters(engine)
    pull = improve(engine, tmp_path, settings(peft=peft, updates=2))
    engine.load(pull.candidate.weights)
    engine.load(Weights())
    after = parameters(engine)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert "forward" not in engine.model.__dict__


@pytest.mark.parametrize(("first", "second", "kind"), [
    ("none", "none", "full"), ("lora", "lora", "lora"), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("lora", "none", "full"), ("none", "lora", "full"), ("dora", "dora", "lora"), ("dora", "none", "full"),
        ("none", "dora", "full"), ("dora", "lora", "lora"),
    )),
])  # fmt: skip
def test_a_second_round_goes_on_from_the_first(engine, tmp_path, first, second, kind):
    one = improve(engine, tmp_path / "1", settings(peft=first, updates=2))
    assert one.candidate.weights.kind == ("full" if first == "none" else "lora")
    two = improve(engine, tmp_path / "2", settings(peft=second, updates=2), parent=one.candidate)
    assert two.candidate.weights.kind == kind
    assert two.candidate.weights.digest != one.candidate.weights.digest
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8]])
        trained = engine.model(ids).logits
        engine.load(two.candidate.weights)
        assert torch.allclose(engine.model(ids).logits, trained, atol=1e-5)


def test_trained_tokens_are_the_sampled_ones(engine, tmp_path):
    pull = improve(engine, tmp_path, settings(updates=3))
    assert max(v for _, v in pull.metrics["logprob_gap"]) < 1e-4
    assert pull.notes["alarms"] == []


def test_the_importance_ratio_of_the_engines_own_samples_is_one(engine, tmp_path):
    pull = improve(engine, tmp_path / "on", settings(updates=2, importance_correction="on"))
    assert [v for _, v in pull.metrics["importance_ratio"]] == pytest.approx([1, 1], abs=1e-4)
    engine.load(Weights())
    assert "importance_ratio" not in improve(engine, tmp_path / "auto", settings(updates=1)).metrics


def test_gspo_reaches_trl_with_its_narrow_bounds(tmp_path):
    how = settings(loss="grpo", importance_sampling_level="sequence")
    told = trainer_settings(how, 8, 0, correct=False).arguments(tmp_path, torch.device("cpu"))
    assert (told.loss_type, told.importance_sampling_level) == ("grpo", "sequence")
    assert (told.epsilon, told.epsilon_high) == (3e-4, 4e-4)


@pytest.mark.parametrize("peft", ["none", "lora", DORA])
def test_kl_to_the_base_is_logged(engine, tmp_path, peft):
    pull = improve(engine, tmp_path, settings(updates=3, beta=0.1, peft=peft))
    kl = [v for _, v in pull.metrics["kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 0


@pytest.mark.parametrize("peft", ["lora", DORA])
def test_kl_of_a_second_adapter_round_is_to_the_base(engine, tmp_path, peft):
    """And without a second model: the reference is the model with its adapter switched off."""
    one = improve(engine, tmp_path / "1", settings(peft=peft, updates=3))
    two = improve(engine, tmp_path / "2", settings(peft=peft, updates=1, beta=0.1), parent=one.candidate)
    assert two.metrics["kl"][0][1] > 1e-5


@pytest.mark.parametrize(("peft", "second_model"), [("lora", False), ("none", True)])
def test_an_adapter_needs_no_second_model_for_its_reference(engine, tmp_path, monkeypatch, peft, second_model):
    made = []
    release = ProgramTrainer.release

    def released(trainer):
        made.append(trainer.ref_model is not None)
        release(trainer)

    monkeypatch.setattr(ProgramTrainer, "release", released)
    improve(engine, tmp_path, settings(peft=peft, updates=1, beta=0.1))
    assert made == [second_model]


def test_dora_trains_magnitudes_and_is_another_candidate_than_lora(engine, tmp_path):
    from safetensors.torch import load_file

    norms = {name: p.norm(dim=1) for name, p in parameters(engine).items() if p.dim() == 2}  # where magnitudes start
    done = {peft: improve(engine, tmp_path / peft, settings(peft=peft, updates=2)) for peft in ("lora", "dora")}
    files = {p: load_file(Path(str(d.candidate.weights.path)) / ADAPTER_FILE) for p, d in done.items()}
    moved = []
    for name, magnitude in files["dora"].items():
        if "magnitude" in name:
            layer = name.removeprefix("base_model.model.").split(".lora_")[0]
            moved.append(float((magnitude.flatten() - norms[f"{layer}.weight"]).abs().max()))
    assert len(moved) == 14  # seven linear layers in each of two blocks
    assert 1e-5 < max(moved) < 0.1
    assert not any("magnitude" in name for name in files["lora"])
    assert done["lora"].candidate.digest != done["dora"].candidate.digest
    assert max(v for _, v in done["dora"].metrics["logprob_gap"]) < 1e-4


def test_nothing_to_learn_stops_with_a_hint_and_the_parent_comes_back(engine, tmp_path):
    before = parameters(engine)
    with pytest.raises(LeverError, match="Raise temperature"):
        improve(engine, tmp_path, settings(empty_updates=3), make_task(lambda e, p, s: 0.5))
    assert engine.version == "base"
    assert all(torch.equal(before[n], p) for n, p in parameters(engine).items())


def test_answers_that_no_longer_vary_end_a_pull_that_has_learned(engine, tmp_path):
    """What was learned until then is the child: whether it is kept is for dev to say."""
    calls = iter(range(10**6))
    how = settings(empty_updates=2, updates=12, examples_per_update=2, group_size=4)
    pull = improve(engine, tmp_path, how, make_task(lambda e, p, s: 0.5 if (n := next(calls)) >= 24 else n % 2))
    assert pull.notes["updates"] == 5
    assert "no longer vary: all groups of updates 3 to 4 were constant (mean reward 0.500)" in pull.notes["stopped"]
    assert pull.notes["alarms"][0] == pull.notes["stopped"]
    assert pull.candidate.weights.kind != "base"


def test_a_solved_task_stops_early(engine, tmp_path):
    pull = improve(engine, tmp_path, settings(empty_updates=2), make_task(lambda e, p, s: 1.0))
    assert "solved" in pull.notes["stopped"]
    assert pull.notes["updates"] == 2


def test_a_pull_killed_after_its_early_stop_does_not_go_on(engine, tmp_path, monkeypatch):
    task, how = make_task(lambda e, p, s: 1.0), settings(empty_updates=2, save_every=1)
    with monkeypatch.context() as patched:
        patched.setattr("colever.optimizers.weight_lever.save_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            improve(engine, tmp_path, how, task)
    again = improve(engine, tmp_path, how, task)
    assert "solved" in again.notes["stopped"]
    assert [update for update, _ in again.metrics["reward"]] == [0, 1]


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_weights_that_are_not_finite_stop_the_pull_and_the_parent_comes_back(engine, tmp_path):
    before = parameters(engine)
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(LeverError, match="Try a lower learning_rate"):
        improve(engine, tmp_path, settings())
    assert engine.version == "base"
    assert all(torch.equal(before[n], p) for n, p in parameters(engine).items())


def test_a_cap_is_kept(engine, tmp_path):
    budget = Budget({"rollouts": 20})
    with pytest.raises(BudgetExhausted):
        improve(engine, tmp_path, settings(), budget=budget)
    assert budget.spent.rollouts == 16
    assert budget.spent.trained_tokens > 0
    assert budget.spent.flops > 0


def test_examples_of_an_epoch_are_each_chosen_once():
    examples = [(str(i), None) for i in range(10)]
    seen = [i for update in range(3) for i, _ in in_turn(examples, 3, 0, update)]
    assert len(set(seen)) == 9
    assert in_turn(examples, 3, 0, 4) == in_turn(examples, 3, 0, 4)
    assert in_turn(examples, 3, 0, 0) != in_turn(examples, 3, 1, 0)
    assert len(in_turn(examples, 64, 0, 5)) == 10
    with pytest.raises(LeverError, match="empty"):
        in_turn([], 3, 0, 0)
