"""vLLM in this process, for real on this CPU (without sleep): what it samples, its swaps, a trial through it.

Where this environment has no vLLM the file is run once more by the python of one that has it (COLEVER_VLLM_PYTHON),
with what else is needed taken from here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import EngineConformance, LeverConformance, adapter
from test_weight_lever import make_task, settings

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.engines.vllm_inside_engine import InsideVllmEngine
from colever.engines.vllm_server import PYTHON, Serving
from colever.errors import InfrastructureError, UsageError
from colever.optimizers.study import StudyFolder
from colever.optimizers.trainable import trainable
from colever.optimizers.weight_lever import WeightLever
from colever.tasks.task import Task
from colever.types import Completion, Weights

HERE = importlib.util.find_spec("vllm") is not None
pytestmark = pytest.mark.slow
inside = pytest.mark.skipif(not HERE, reason="run by test_in_an_environment_with_vllm")
AGAIN = """
import site, sys
site.addsitedir(sys.argv[1])  # after its own packages
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.skipif(HERE or not os.environ.get(PYTHON), reason=f"{PYTHON} is not set, or vLLM is here")
def test_in_an_environment_with_vllm(tmp_path: Path) -> None:
    ours = sysconfig.get_path("purelib")
    command = [os.environ[PYTHON], "-c", AGAIN, ours, "-q", "-m", "slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "inside"), __file__], capture_output=True, text=True, timeout=900
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engine(told: list[str]) -> Iterator[InsideVllmEngine]:
    made = open_engine("seed", serving=Serving(inside=True, told=told.append))
    assert isinstance(made, InsideVllmEngine)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _as_it_came(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if HERE and request.node.name != "test_a_trial_of_both_levers":  # which closes it
        request.getfixturevalue("engine").load(Weights())


@inside
class TestVllmInside(EngineConformance):
    """On the fixture above: the seed model in float32 on a CPU."""

    close = 2e-3


@inside
class TestWeightLeverOverVllmInside(LeverConformance):
    """GRPO of full weights on what vLLM sampled in the same process; every update's weights are put into it."""

    def lever(self) -> WeightLever:
        return WeightLever(settings(updates=2, peft="none"))

    def task(self, **changes: Any) -> Task:
        return replace(make_task(), **changes)

    def test_equal_seeds_make_equal_children(self, engine: Any, tmp_path: Path) -> None:
        pytest.skip("vLLM's last bits depend on what shared a step")

    @pytest.mark.parametrize("peft", ["none", "lora"])
    def test_sampler_and_trainer_agree(self, engine: Any, tmp_path: Path, peft: str) -> None:
        lever = WeightLever(settings(updates=2, peft=peft))
        self.lever = lambda: lever  # type: ignore[method-assign]
        pull = self.pull(engine, tmp_path)
        assert pull.candidate.weights.kind == ("full" if peft == "none" else "lora")
        curves = {name: [value for _, value in curve] for name, curve in pull.metrics.items()}
        print(peft, {n: max(curves[n]) for n in ("logprob_gap", "logprob_gap_mean")})
        assert max(curves["logprob_gap_mean"]) < 0.02
        assert max(curves["logprob_gap"]) < 0.02
        assert all(abs(ratio - 1) < 0.02 for ratio in curves["importance_ratio"])


def gap(engine: Any, made: list[Completion]) -> float:
    return max(TestVllmInside().apart(engine, m, 1.0) for m in made)


@inside
def test_full_weights_are_followed_and_what_the_prefix_cache_held_is_not_used(engine: Any) -> None:
    requests = TestVllmInside().requests(engine)
    before = engine.generate(requests)
    with trainable(engine, Weights(), WeightSettings(peft="none"), 0) as model:
        for seed in range(2):
            torch.manual_seed(seed)
            with torch.no_grad():
                for values in model.parameters():
                    values.add_(0.02 * torch.randn_like(values))
            engine.touched()
            made = engine.generate(requests)
            assert {m.version for m in made} == {engine.version}
            assert gap(engine, made) < 2e-3
            assert [m.completion_ids for m in made] != [m.completion_ids for m in before]
    engine.load(Weights())
    assert [m.completion_ids for m in engine.generate(requests)] == [m.completion_ids for m in before]


@inside
def test_an_adapter_on_full_weights_is_an_adapter_on_full_weights(engine: Any, tmp_path: Path) -> None:
    from colever.optimizers.trainable import save_weights

    how = WeightSettings(peft="none")
    with trainable(engine, Weights(), how, 0) as model:
        with torch.no_grad():
            for values in model.parameters():
                values.add_(0.02 * torch.randn_like(values))
        full = save_weights(model, engine, Weights(), how, tmp_path / "full")
    with trainable(engine, full, WeightSettings(peft="lora"), 0) as model:
        with torch.no_grad():
            for name, values in model.named_parameters():
                if "lora_B" in name:
                    values.normal_(std=0.05)
        engine.touched()
        assert gap(engine, engine.generate(TestVllmInside().requests(engine))) < 2e-3


@inside
def test_no_number_is_used_for_two_states_of_an_adapter(engine: Any, tmp_path: Path) -> None:
    numbers = []
    for seed in range(3):
        engine.load(adapter(engine, tmp_path / str(seed), seed))
        made = engine.generate(TestVllmInside().requests(engine, 2))
        assert gap(engine, made) < 2e-3
        client = engine.server.ensure().client
        numbers += [a.lora_int_id for a in client.adapters.values()]
    assert len(set(numbers)) >= 3
    assert numbers == sorted(numbers)
    engine.load(adapter(engine, tmp_path / "0b", 0))
    engine.generate(TestVllmInside().requests(engine, 1))
    assert max(a.lora_int_id for a in client.adapters.values()) > max(numbers)


@inside
def test_what_is_told_and_what_is_refused(engine: Any, told: list[str], tmp_path: Path) -> None:
    engine.generate(TestVllmInside().requests(engine, 1))
    assert told == [
        "vLLM: opening it in this process",
        "vLLM: this device has no sleep mode: it keeps its memory while the trainer works",
    ]
    engine.rest()
    assert not engine.server._loop.asleep
    with trainable(engine, Weights(), WeightSettings(peft="lora", lora_rank=64), 0):
        engine.touched()
        with pytest.raises(UsageError, match=r"refused an adapter: .*accepted: engine.vllm_args=\[--max-lora-rank"):
            engine.generate(TestVllmInside().requests(engine, 1))
    other = open_engine("seed", serving=Serving(inside=True))
    with pytest.raises(UsageError, match="one vLLM is open in this process already"):
        other.load(Weights())


@inside
def test_a_trial_of_both_levers(engine: Any, run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    engine.close()  # one at a time in a process: another one is opened, by the command
    (tmp_path / "small.py").write_text(TASK)
    sets = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    status, _, err = run(
        *("optimize", f"{tmp_path / 'small.py'}:task", "--schedule", "p,w", "--engine", "vllm", "--home", tmp_path),
        *("--set", "engine.vllm_mode=in_process", *sets),
    )
    assert status == 0, err
    folder = StudyFolder(tmp_path, "small-task-seed-s0-pw")
    state = folder.state()
    assert state is not None
    (trial,) = folder.trials(state)
    trained = trial.rounds[1]
    assert max(v for _, v in trained.metrics["logprob_gap_mean"]) < 0.02
    with pytest.raises(InfrastructureError, match="was closed"):
        engine.generate(TestVllmInside().requests(engine, 1))


SMALL = {
    "weights.updates": 2, "weights.examples_per_update": 4, "weights.group_size": 4, "prompt.candidates": 1,
    "prompt.screen": 4, "prompt.examples": 8, "prompt.finalists": 1, "elsewhere": "[]",
}  # fmt: skip
TASK = """
from dataclasses import replace
from colever.tasks.load import load_task

whole = load_task("arithmetic")
task = replace(whole, dev=whole.dev[:32], test=whole.test[:32], watched={})
"""
