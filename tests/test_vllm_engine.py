"""The engine that samples from a vLLM server, against a stand-in that answers by an engine of its own over real HTTP.

Swaps, faults and refusals; that a real server does the same is tried in ``slow/test_vllm.py``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import EngineConformance, LeverConformance, adapter
from conftest import write_checkpoint
from standin_vllm import VERSION, StandIn
from test_weight_lever import make_task, settings

from colever.config import EngineSettings, RemoteSettings, WeightSettings
from colever.engines.generation import TokenRequest
from colever.engines.lm import open_engine, open_policy
from colever.engines.vllm_engine import TRIES, VllmEngine
from colever.engines.vllm_given import GivenServer
from colever.engines.vllm_server import Serving
from colever.errors import InfrastructureError, UsageError
from colever.loading import load_config
from colever.optimizers.importance import corrects
from colever.optimizers.trainable import resolved, trainable
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.task import Task
from colever.types import Weights


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[StandIn]:
    with StandIn(open_engine(tiny_checkpoint)) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, server: StandIn) -> VllmEngine:
    return on(server, tiny_checkpoint)


@pytest.fixture(autouse=True)
def _as_it_came(engine: VllmEngine, server: StandIn) -> Iterator[None]:
    yield
    server.faults.clear()
    engine.load(Weights())


def on(server: StandIn, checkpoint: Path) -> VllmEngine:
    made = open_engine(checkpoint, serving=Serving(url=server.url))
    assert isinstance(made, VllmEngine)
    return made


def one(engine: VllmEngine, **fields: Any) -> TokenRequest:
    return TokenRequest(engine.render([{"role": "user", "content": "2 + 2"}]), **{"max_tokens": 6, **fields})


class TestVllmEngine(EngineConformance):
    """On the fixture above."""


class TestWeightLeverOverAServer(LeverConformance):
    """GRPO on what the server sampled, with importance ratios and an adapter that is swapped after every update."""

    def lever(self) -> WeightLever:
        return WeightLever(settings(updates=2, peft="auto"))

    def task(self, **changes: Any) -> Task:
        return replace(make_task(), **changes)

    def test_sampler_and_trainer_agree_and_ratios_are_applied(
        self, engine: Any, server: StandIn, tmp_path: Path
    ) -> None:
        asked = len(server.asked)
        pull = self.pull(engine, tmp_path)
        assert pull.candidate.weights.kind == "lora"
        assert len({body["model"] for body in server.asked[asked:]} - {"base"}) >= 1
        curves = {name: [value for _, value in curve] for name, curve in pull.metrics.items()}
        assert 0 <= max(curves["logprob_gap_mean"]) <= max(curves["logprob_gap"]) < 1e-4
        assert all(abs(ratio - 1) < 1e-4 for ratio in curves["importance_ratio"])
        assert pull.notes["alarms"] == []


def test_every_predictor_has_a_name_of_its_own(engine: VllmEngine, server: StandIn) -> None:
    how = WeightSettings(adapters="per_predictor")
    with trainable(engine, Weights(), how.model_copy(update={"peft": "lora"}), 0, ["a", "b"]) as model:
        torch.manual_seed(0)
        with torch.no_grad():
            for name, values in model.named_parameters():
                if "lora_B" in name:
                    values.normal_(std=0.05)
        engine.touched()
        for predictor in ("a", "b", "a"):
            (made,) = engine.generate([one(engine, predictor=predictor, temperature=1.0)])
            engine.adapters.activate(predictor)  # type: ignore[union-attr]
            assert TestVllmEngine().apart(engine, made, 1.0) <= 1e-4
        assert len({body["model"] for body in server.asked[-3:]}) == 2


def test_it_is_the_model_in_this_process_and_says_that_another_samples(engine: VllmEngine, server: StandIn) -> None:
    assert engine.server.vllm_version == VERSION
    assert engine.digest not in (server.engine.digest, "")
    engine.load(Weights())
    assert engine.context == 512  # the server's: the model takes 2048
    assert corrects("auto", engine)
    assert not corrects("auto", server.engine)
    assert resolved(WeightSettings(), "seed", engine.adapters_only).peft == "lora"


def test_a_shared_prompt_is_counted_as_the_server_says(engine: VllmEngine) -> None:
    request, before = one(engine), engine.meter
    (made,) = engine.generate([request])
    spent, prompt = engine.meter - before, len(request.prompt_ids)
    assert spent.prompt_tokens == prompt - prompt // 2
    assert spent.completion_tokens == len(made.completion_ids)


@pytest.mark.parametrize("fault", ["500", "drop", "odd", "other"])
def test_a_reply_that_is_none_is_asked_for_again(engine: VllmEngine, server: StandIn, fault: str) -> None:
    (want,) = engine.generate([one(engine, temperature=1.0, seed=5)])
    server.faults += [fault] * (TRIES - 1)
    (made,) = engine.generate([one(engine, temperature=1.0, seed=5)])
    assert made.completion_ids == want.completion_ids
    assert not server.faults


def test_one_that_fails_each_time_is_no_completion(engine: VllmEngine, server: StandIn) -> None:
    engine.generate([one(engine)])
    server.faults += ["500"] * 40
    with pytest.raises(InfrastructureError, match="failed 4 times on one request, the last time: 500: EngineCore died"):
        engine.generate([one(engine)])


def test_adapters_that_a_server_forgot_are_loaded_again(engine: VllmEngine, server: StandIn, tmp_path: Path) -> None:
    engine.load(adapter(engine, tmp_path / "a", 3))
    (want,) = engine.generate([one(engine)])
    names = set(server.loaded)
    server.faults.append("forget")
    (made,) = engine.generate([one(engine)])
    assert (made.completion_ids, made.version) == (want.completion_ids, want.version)
    assert len(server.loaded) == 1
    assert not names & set(server.loaded)  # a name is used once


def test_no_name_is_used_for_two_states_of_the_weights(engine: VllmEngine, server: StandIn) -> None:
    names = []
    with trainable(engine, Weights(), WeightSettings(peft="lora"), 0) as model:
        for _ in range(4):
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if "lora_B" in n).add_(0.1)
            engine.touched()
            engine.generate([one(engine), one(engine, seed=1)])
            names.append(server.asked[-1]["model"])
            assert server.asked[-2]["model"] == names[-1]
            assert len(server.loaded) <= 2  # older ones are unloaded
    assert len(set(names)) == 4


def test_full_weights_and_dora_are_refused(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"full weights, .* accepted with engine.kind=vllm: base weights and LoRA"):
        engine.load(Weights("full", str(tmp_path), "x"))
    for peft in ("none", "dora"):
        with (
            pytest.raises(UsageError, match=f"weights.peft={peft}.*accepted with engine.kind=vllm"),
            trainable(engine, Weights(), WeightSettings(peft=peft), 0),
        ):
            pass
        with pytest.raises(UsageError, match=f"weights.peft={peft}: .* lora or auto"):
            load_config(None, flags={"task": "t"}, overrides={"engine.kind": "vllm", "weights.peft": peft})
    with pytest.raises(UsageError, match=r"engine.quantization=nf4: .* accepted with engine.kind=vllm: none"):
        load_config(None, flags={"task": "t"}, overrides={"engine.kind": "vllm", "engine.quantization": "nf4"})


def test_vllm_in_this_process_takes_full_weights_and_no_server() -> None:
    inside = {"engine.kind": "vllm", "engine.vllm_mode": "in_process"}
    assert load_config(None, flags={"task": "t"}, overrides={**inside, "weights.peft": "none"}).weights.peft == "none"
    for name, value, said in (
        ("weights.peft", "dora", "weights.peft=dora: vLLM takes no DoRA"),
        ("engine.vllm_url", "http://127.0.0.1:1", "engine.vllm_url: there is no server"),
        ("engine.vllm_python", "python", "engine.vllm_python: there is no server"),
    ):
        with pytest.raises(UsageError, match=said):
            load_config(None, flags={"task": "t"}, overrides={**inside, name: value})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
def test_vllm_in_this_process_must_be_there(tiny_checkpoint: Path) -> None:
    settings = EngineSettings(kind="vllm", vllm_mode="in_process")
    with pytest.raises(UsageError, match="vLLM is not in this environment; accepted: "):
        open_policy(tiny_checkpoint, RemoteSettings(), settings)


def test_a_server_of_another_model_is_found_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with StandIn(open_engine(write_checkpoint(tmp_path / "other", seed=1))) as other:
        engine = on(other, tiny_checkpoint)
        with pytest.raises(UsageError, match=r"has other weights than model .* accepted: a server of the same"):
            engine.generate([one(engine)])


def test_a_server_that_leaves_the_temperature_out_is_found_out(server: StandIn, tiny_checkpoint: Path) -> None:
    with StandIn(server.engine, tempered=False) as other:
        engine = on(other, tiny_checkpoint)
        with pytest.raises(UsageError, match="--logprobs-mode processed_logprobs"):
            engine.generate([one(engine)])


def test_an_address_must_be_of_a_server_that_takes_adapters(server: StandIn, tiny_checkpoint: Path) -> None:
    with StandIn(server.engine, adapters=False) as other, pytest.raises(UsageError, match="RUNTIME_LORA_UPDATING=1"):
        on(other, tiny_checkpoint)
    with pytest.raises(UsageError, match=r"engine.vllm_url=http://127.0.0.1:9: no vLLM server answers there"):
        open_engine(tiny_checkpoint, serving=Serving(url="http://127.0.0.1:9"))
    with pytest.raises(UsageError, match=r"engine.vllm_url=here: accepted: an address such as"):
        open_engine(tiny_checkpoint, serving=Serving(url="here"))


def test_one_that_does_not_come_back_is_told(server: StandIn, tiny_checkpoint: Path) -> None:
    engine, told = on(server, tiny_checkpoint), list[str]()
    with StandIn(server.engine) as other:
        engine.server = GivenServer(Serving(url=other.url, told=told.append), patience=0.1)
        engine.generate([one(engine)])
    with pytest.raises(InfrastructureError, match="is gone, and did not come back"):
        engine.generate([one(engine)])
    assert told == [f"vLLM: waiting for the server at {engine.server.url}"]


def test_the_settings_open_it(server: StandIn, tiny_checkpoint: Path) -> None:
    settings = EngineSettings(kind="vllm", vllm_url=server.url)
    assert isinstance(open_policy(tiny_checkpoint, RemoteSettings(), settings), VllmEngine)
    assert not isinstance(open_policy(tiny_checkpoint, RemoteSettings()), VllmEngine)
    with pytest.raises(UsageError, match=r"behind an API, where engine.kind=vllm"):
        open_policy("api:openai/some", RemoteSettings(), settings)
