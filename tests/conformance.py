"""What every implementation of a protocol must pass: subclass, say what to test, and the checks come with it."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dspy.utils.exceptions import ContextWindowExceededError
from pydantic import ValidationError

from colever.config import WeightSettings
from colever.engines.generation import TokenRequest
from colever.engines.lm import engine_lm
from colever.errors import BudgetExhausted, StoreError
from colever.optimizers.budget import Budget
from colever.optimizers.lever import Lever, NullProgress, Pull
from colever.optimizers.trainable import save_weights, trainable
from colever.tasks.task import Task
from colever.types import Candidate, Completion, Weights


class Unreadable(list[Any]):
    """A split that no lever may look into."""

    def __iter__(self) -> Any:
        raise AssertionError("a split other than train was read")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a split other than train was read")


def forbidden(*_: Any) -> float:
    raise AssertionError("gold was read")


class LeverConformance:
    """A subclass has a fixture ``engine`` and says which lever (with settings of seconds) on which task."""

    def lever(self) -> Lever:
        raise NotImplementedError

    def task(self, **changes: Any) -> Task:
        raise NotImplementedError

    def parent(self, task: Task) -> Candidate:
        """What is improved."""
        return task.base_candidate()

    def pull(self, engine: Any, workdir: Path, budget: Budget | None = None, seed: int = 3, **changes: Any) -> Pull:
        task = self.task(**changes)
        parent = self.parent(task)
        before = parent.to_json()
        made = self.lever().improve(parent, task, engine, budget or Budget(), seed, workdir, NullProgress())
        assert parent.to_json() == before
        return made

    def test_a_pull_has_a_candidate_of_the_same_predictors(self, engine: Any, tmp_path: Path) -> None:
        pull = self.pull(engine, tmp_path)
        assert isinstance(pull, Pull)
        predictors = {name for name, _ in self.task().program().named_predictors()}
        assert set(pull.candidate.prompts) == predictors
        assert Candidate.from_json(json.loads(json.dumps(pull.candidate.to_json()))).digest == pull.candidate.digest
        assert pull.metrics
        for curve in pull.metrics.values():
            assert all(isinstance(step, int) and math.isfinite(value) for step, value in curve)
        json.dumps(pull.notes)

    def test_it_moves_its_own_lever_only(self, engine: Any, tmp_path: Path) -> None:
        """A weight lever that folds prompts into weights hands the task's own back."""
        lever, base = self.lever(), self.task().base_candidate()
        parent = self.parent(self.task())
        child = self.pull(engine, tmp_path).candidate
        if lever.name == "prompt":
            assert child.weights == parent.weights
        else:
            folds = getattr(lever.settings, "fold", False)
            assert child.prompts == (base if folds else parent).prompts

    def test_a_setting_that_it_does_not_know_raises(self) -> None:
        settings = self.lever().settings
        with pytest.raises(ValidationError, match="no_such_setting"):
            type(settings)(**{**settings.model_dump(), "no_such_setting": 1})

    def test_gold_dev_test_and_watched_splits_are_not_read(self, engine: Any, tmp_path: Path) -> None:
        hidden = {"dev": Unreadable(), "test": Unreadable(), "watched": {"far": Unreadable()}}
        self.pull(engine, tmp_path, gold=forbidden, **hidden)

    def test_what_the_engine_did_is_charged(self, engine: Any, tmp_path: Path) -> None:
        budget, before = Budget(), engine.meter
        self.pull(engine, tmp_path, budget)
        after = engine.meter
        assert budget.spent.rollouts > 0
        assert budget.spent.prompt_tokens == after.prompt_tokens - before.prompt_tokens > 0
        assert budget.spent.completion_tokens == after.completion_tokens - before.completion_tokens > 0

    def test_a_cap_is_not_passed(self, engine: Any, tmp_path: Path) -> None:
        budget = Budget({"rollouts": 1})
        with pytest.raises(BudgetExhausted):
            self.pull(engine, tmp_path, budget)
        assert budget.spent.rollouts <= 1

    def test_equal_seeds_make_equal_children(self, engine: Any, tmp_path: Path) -> None:
        one, two = (self.pull(engine, tmp_path / name).candidate for name in ("one", "two"))
        assert one.digest == two.digest


def adapter(engine: Any, folder: Path, seed: int) -> Weights:
    """A LoRA adapter of the engine's model whose matrices are noise, as weights in ``folder``."""
    settings = WeightSettings(peft="lora", lora_rank=8)
    with trainable(engine, Weights(), settings, seed) as model:
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, values in model.named_parameters():
                if "lora_B" in name:
                    values.normal_(std=0.05)
        made = save_weights(model, engine, Weights(), settings, folder)
    engine.load(Weights())
    return made


class EngineConformance:
    """A subclass has a fixture ``engine``: one on a model in this process, whatever samples from it.

    Its log-probabilities are within ``close`` of a forward pass of ``engine.model``.
    """

    close = 1e-4

    def requests(self, engine: Any, count: int = 6, **fields: Any) -> list[TokenRequest]:
        ids = [engine.render([{"role": "user", "content": f"What is {i} + {i}?"}]) for i in range(count)]
        return [replace(TokenRequest(p, 12, 1.0, seed=2**64 - 1 - i), **fields) for i, p in enumerate(ids)]

    def apart(self, engine: Any, made: Completion, temperature: float) -> float:
        """The largest difference between a completion's log-probabilities and a forward pass."""
        ids = torch.tensor([[*made.prompt_ids, *made.completion_ids]], device=engine.device)
        with torch.no_grad():
            logits = engine.model(ids).logits[0, len(made.prompt_ids) - 1 : -1].float() / (temperature or 1.0)
        wanted = logits.log_softmax(-1).gather(1, ids[0, len(made.prompt_ids) :, None])[:, 0]
        return float((wanted - torch.tensor(made.logprobs, device=engine.device)).abs().max())

    @pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
    def test_tokens_come_with_the_log_probabilities_of_the_model(self, engine: Any, temperature: float) -> None:
        requests = self.requests(engine, temperature=temperature)
        for request, made in zip(requests, engine.generate(requests), strict=True):
            assert made.prompt_ids == request.prompt_ids
            assert 1 <= len(made.completion_ids) == len(made.logprobs) <= 12
            assert self.apart(engine, made, temperature) <= self.close
            assert made.version == engine.version

    def test_at_temperature_0_the_likeliest_token_is_taken(self, engine: Any) -> None:
        for made in engine.generate(self.requests(engine, temperature=0.0)):
            ids = torch.tensor([[*made.prompt_ids, *made.completion_ids]], device=engine.device)
            with torch.no_grad():
                rows = engine.model(ids).logits[0, len(made.prompt_ids) - 1 : -1].log_softmax(-1)
            best = rows.max(-1).values.cpu()
            assert bool((best - torch.tensor(made.logprobs) <= self.close).all())

    def test_samples_differ_by_their_seeds_and_repeat_with_them(self, engine: Any) -> None:
        prompt = self.requests(engine, 1)[0].prompt_ids
        group = [TokenRequest(prompt, 24, 1.0, seed=seed) for seed in range(8)]
        first, again = engine.generate(group), engine.generate(group[::-1])[::-1]
        assert len({made.completion_ids for made in first}) > 4
        assert [made.completion_ids for made in first] == [made.completion_ids for made in again]

    def test_a_completion_ends_at_an_end_token_a_stop_or_its_limit(self, engine: Any) -> None:
        free = engine.generate(self.requests(engine, max_tokens=20))
        for made in free:
            stopped = made.completion_ids[-1] in engine.end_ids
            assert made.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(made.completion_ids) == 20
        stop = next(c for made in free for c in made.text[2:] if c.isascii() and c.isprintable())
        for loose, tight in zip(free, engine.generate(self.requests(engine, max_tokens=20, stop=(stop,))), strict=True):
            assert tight.completion_ids == loose.completion_ids[: len(tight.completion_ids)]
            assert stop not in tight.text
            assert tight.finish_reason == ("stop" if stop in loose.text else loose.finish_reason)

    def test_weights_are_swapped_and_the_version_tells_which(self, engine: Any, tmp_path: Path) -> None:
        one, two = (adapter(engine, tmp_path / str(seed), seed) for seed in (1, 2))
        requests, made, versions = self.requests(engine), {}, []
        for name, weights in (("base", Weights()), ("one", one), ("two", two), ("base again", Weights())):
            engine.load(weights)
            made[name] = engine.generate(requests)
            versions.append(engine.version)
            assert max(self.apart(engine, m, 1.0) for m in made[name]) <= self.close
            assert {m.version for m in made[name]} == {engine.version}
        assert len({*versions}) == 3
        texts = {name: [m.completion_ids for m in found] for name, found in made.items()}
        assert texts["base"] == texts["base again"]
        assert texts["base"] != texts["one"] != texts["two"]

    def test_weights_that_are_trained_answer_at_once_under_a_version_of_their_own(self, engine: Any) -> None:
        requests = self.requests(engine, 2)
        before, versions = engine.generate(requests), [engine.version]
        with trainable(engine, Weights(), WeightSettings(peft="lora"), 0) as model:
            matrices = [p for name, p in model.named_parameters() if "lora_B" in name]
            for _ in range(2):
                with torch.no_grad():
                    for values in matrices:
                        values.add_(0.03)
                engine.touched()
                made = engine.generate(requests)
                versions.append(engine.version)
                assert {m.version for m in made} == {engine.version}
                assert max(self.apart(engine, m, 1.0) for m in made) <= self.close
        assert len({*versions}) == 3
        engine.load(Weights())
        assert [m.completion_ids for m in engine.generate(requests)] == [m.completion_ids for m in before]

    def test_weights_that_are_not_there_leave_the_others_in(self, engine: Any, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="is missing"):
            engine.load(Weights("lora", str(tmp_path / "none"), "none"))
        assert engine.generate(self.requests(engine, 1))[0].version == engine.version == Weights().digest

    def test_it_answers_a_language_model_and_counts_what_it_does(self, engine: Any) -> None:
        before = engine.meter
        assert isinstance(engine_lm(engine, max_tokens=5)("Say something.")[0], str)
        spent = engine.meter - before
        assert spent.completion_tokens in range(1, 6)
        assert spent.prompt_tokens > 0
        assert spent.flops > 0

    def test_a_prompt_that_is_too_long_is_said_to_be(self, engine: Any) -> None:
        with pytest.raises(ContextWindowExceededError):
            engine_lm(engine)("word " * engine.context)

    def test_a_copy_is_the_engine_itself(self, engine: Any) -> None:
        assert copy.deepcopy(engine) is engine
