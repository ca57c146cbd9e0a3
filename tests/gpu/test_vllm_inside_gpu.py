"""vLLM in this process on a GPU: it sleeps while weights are trained, frees its memory, and wakes with the weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import EngineConformance, adapter
from conftest import write_checkpoint

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.engines.vllm_inside_engine import InsideVllmEngine
from colever.engines.vllm_server import Serving
from colever.optimizers.trainable import trainable
from colever.types import Weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment"),
]
GIB = 2**30


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InsideVllmEngine]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=128)
    args = ("--enforce-eager", "--max-model-len", "1024")
    made = open_engine(checkpoint, device="cuda", dtype="bfloat16", serving=Serving(inside=True, args=args))
    assert isinstance(made, InsideVllmEngine)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _as_it_came(engine: InsideVllmEngine) -> Iterator[None]:
    yield
    engine.load(Weights())


class TestVllmInsideOnAGpu(EngineConformance):
    """On the fixture above, in bfloat16."""

    close = 0.1


def free() -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def asleep(engine: Any) -> bool:
    return bool(engine.server._loop.asleep)


def test_it_gives_its_memory_back_and_wakes_with_the_same_weights(engine: Any, tmp_path: Path) -> None:
    requests = TestVllmInsideOnAGpu().requests(engine, temperature=0.0)
    engine.load(adapter(engine, tmp_path / "a", 3))
    before = engine.generate(requests)
    awake = free()
    engine.rest()
    assert asleep(engine)
    assert free() - awake > 4 * GIB  # its keys and values, and its weights
    engine.rest()
    again = engine.generate(requests)
    assert not asleep(engine)
    assert [m.completion_ids for m in again] == [m.completion_ids for m in before]


def test_it_sleeps_while_weights_are_trained_and_samples_by_the_new_ones(engine: Any) -> None:
    requests = TestVllmInsideOnAGpu().requests(engine)
    engine.generate(requests)
    with trainable(engine, Weights(), WeightSettings(peft="none"), 0) as model:
        assert asleep(engine)
        with torch.no_grad():
            for values in model.parameters():
                values.add_(0.02 * torch.randn_like(values))
        engine.touched()
        made = engine.generate(requests)
        assert not asleep(engine)
        assert {m.version for m in made} == {engine.version}
        gaps = [TestVllmInsideOnAGpu().apart(engine, m, 1.0) for m in made]
        assert sum(gaps) / len(gaps) < 0.1
