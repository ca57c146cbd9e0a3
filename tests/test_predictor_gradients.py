"""One LoRA adapter per predictor: each is trained by its own predictor's rows, as if it were alone on the model."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig
from test_grpo import make_rows, trainer
from test_predictor_adapters import NAMES

from colever.engines.adapters import PredictorAdapters
from colever.engines.generation import ModelShape
from colever.engines.lm import open_engine
from colever.optimizers.trajectories import Row, TrainingBatch, parts


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return open_engine(tiny_checkpoint)


def rows_of_two() -> list[Row]:
    """Rows of both predictors, prompts shared between them too."""
    rows = make_rows()
    return [dataclasses.replace(r, predictor=NAMES[i % 2]) for i, r in enumerate(rows)]


def batch_of(rows: list[Row], everything: list[Row]) -> TrainingBatch:
    """``rows`` with the divisors of ``everything``."""
    tokens = sum(len(r.completion_ids) for r in everything)
    return TrainingBatch(tuple(rows), len(everything), tokens, 4, 0, len(everything), 0, 0, 0.5, {}, {})


def with_adapters(base: torch.nn.Module, peft: str = "lora") -> PredictorAdapters:
    torch.manual_seed(5)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=peft == "dora", init_lora_weights=False
    )
    return PredictorAdapters.new(base, NAMES, config)


@pytest.fixture
def base(engine):
    return copy.deepcopy(engine.model)


def gradients(adapters: PredictorAdapters, t) -> tuple[float, dict[str, dict[str, torch.Tensor | None]]]:
    """The loss, and of each predictor's adapter the gradient of every tensor."""
    t.current_gradient_accumulation_steps = 1
    t.model.zero_grad()
    loss = float(t.training_step(t.model, {}))
    found = {
        predictor: {
            n.replace(f".{name}.", ".").replace(f".{name}", ""): p.grad
            for n, p in t.model.named_parameters()
            if name in n.split(".")
        }
        for predictor, name in adapters.names.items()
    }
    return loss, found


@pytest.mark.parametrize(("loss", "beta", "max_tokens"), [
    ("dapo", 0.0, 4096), ("dapo", 0.1, 120), ("grpo", 0.0, 120), ("grpo", 0.1, 4096), ("dr_grpo", 0.0, 4096),
    ("bnpo", 0.1, 120), ("cispo", 0.0, 120),
])  # fmt: skip
def test_each_gradient_is_that_of_its_predictors_rows_alone(engine, base, tmp_path, loss, beta, max_tokens):
    rows, how = rows_of_two(), {"loss": loss, "beta": beta, "max_tokens": max_tokens}
    adapters = with_adapters(base)
    adapters.save(tmp_path / "set")
    together = trainer(adapters.model, engine.tokenizer, tmp_path / "t", batch_of(rows, rows), adapters=adapters, **how)
    total, found = gradients(adapters, together)
    alone_total = 0.0
    for predictor in NAMES:
        model = copy.deepcopy(engine.model)
        alone = PredictorAdapters.load(model, {predictor: tmp_path / "set" / adapters.names[predictor]})
        own = [r for r in rows if r.predictor == predictor]
        # A trainer that knows one plain adapter and no predictors:
        t = trainer(alone.model, engine.tokenizer, tmp_path / predictor, batch_of(own, rows), **how)
        value, expected = gradients(alone, t)
        alone_total += value
        assert found[predictor].keys() == expected[predictor].keys()
        assert len(expected[predictor]) == 28  # A and B of seven linear layers in each of two blocks
        for name, grad in expected[predictor].items():
            assert grad.abs().max() > 0, name
            assert (found[predictor][name] - grad).abs().max() <= 1e-6 * max(1.0, float(grad.abs().max())), name
    assert total == pytest.approx(alone_total, rel=1e-5, abs=1e-6)


def test_clipping_sees_all_adapters(engine, base, tmp_path):
    rows = rows_of_two()
    adapters = with_adapters(base)
    heard: list[dict[str, float]] = []
    t = trainer(
        adapters.model, engine.tokenizer, tmp_path, batch_of(rows, rows), lambda u, m: heard.append(m),
        adapters=adapters,
    )  # fmt: skip
    _, found = gradients(adapters, t)
    norms = [torch.cat([g.flatten() for g in grads.values()]).norm() for grads in found.values()]
    t.run(None)
    assert all(norm > 0 for norm in norms)
    assert heard[0]["grad_norm"] == pytest.approx(float(torch.stack(norms).norm()), rel=1e-4)


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_an_adapter_without_rows_takes_no_step(engine, base, tmp_path, peft):
    """Though it has momentum from the update before."""
    rows, adapters = rows_of_two(), with_adapters(base, peft)
    own = [[r for r in rows if r.predictor == name] for name in NAMES]
    given = iter([batch_of(rows, rows), batch_of(own[0], rows), batch_of(own[1], rows), batch_of(rows, rows)])
    seen: list[dict[str, torch.Tensor]] = []

    def after(update, metrics):
        seen.append({n: p.detach().clone() for n, p in adapters.model.named_parameters() if "predictor_" in n})

    t = trainer(
        adapters.model, engine.tokenizer, tmp_path, batch_of(rows, rows), after, adapters=adapters, updates=4, beta=0.1
    )
    t._sample = lambda update: next(given)
    t.run(None)
    t.release()
    for update, moved in ((1, [True, False]), (2, [False, True]), (3, [True, True])):
        for predictor, moves in zip(NAMES, moved, strict=True):
            name = adapters.names[predictor]
            changed = [not torch.equal(seen[update][n], p) for n, p in seen[update - 1].items() if name in n.split(".")]
            assert all(changed) if moves else not any(changed), (update, predictor)


def test_parts_hold_one_predictor_each():
    rows = rows_of_two()
    for limit in (60, 10_000):
        made = list(parts(rows, limit, apart=True))
        assert all(len({r.predictor for r in part}) == 1 for part in made)
        assert sorted(map(id, (r for part in made for r in part))) == sorted(map(id, rows))
    assert len(list(parts(rows, 10_000))) == 1


def test_work_is_counted_for_one_adapter(base):
    plain = ModelShape.of(base).body
    adapters = with_adapters(base)
    one = ModelShape.of(base).body
    torch.manual_seed(5)
    assert one > plain
    adapters.model.add_adapter("another", copy.deepcopy(adapters.model.peft_config[adapters.names["first"]]))
    assert ModelShape.of(base).body == one
