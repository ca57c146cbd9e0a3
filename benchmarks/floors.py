"""The least work that given tokens need, the work that was done, and what this machine can do at most.

Knows token ids, a Hugging Face causal language model and FLOPs; knows nothing of peers, servers or workloads.

*Floor*: the FLOPs that any method must compute for these calls. Every distinct prompt position is computed once (what
prompts begin with in common, once for all), every sampled token but the last of each completion once, each with the
(query, key) pairs that it attends to; the output head at the positions that predict a sampled token. An update's
floor is three times that: forward, and backward for inputs and weights.

*Counted*: what really ran, padding included: every matrix product and attention that torch dispatched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from colever.engines.generation import ModelShape

Call = tuple[Sequence[int], int]  # prompt ids, number of completion tokens


# --- the least work ------------------------------------------------------------------------------


def least_flops(model: Any, calls: Iterable[Call]) -> float:
    """Of one forward pass over every distinct position of ``calls``; raises ValueError for an empty completion."""
    calls = [(tuple(prompt), completion) for prompt, completion in calls]
    if any(completion < 1 for _, completion in calls):
        raise ValueError("calls: a completion has no token; accepted: at least 1")
    prompts = sorted({prompt for prompt, _ in calls})
    tokens = pairs = 0
    before: tuple[int, ...] = ()
    for prompt in prompts:  # in order, neighbours share most
        shared = _common(before, prompt)
        tokens += len(prompt) - shared
        pairs += _causal(len(prompt)) - _causal(shared)
        before = prompt
    fed = sum(completion - 1 for _, completion in calls)
    pairs += sum(_causal(len(prompt) + completion - 1) - _causal(len(prompt)) for prompt, completion in calls)
    return ModelShape.of(model).flops(tokens + fed, pairs, len(prompts) + fed)


def served_flops(model: Any, calls: Iterable[tuple[int, int, int]]) -> float:
    """Of (prompt tokens, those of them that a cache held, completion tokens) per call, without padding."""
    tokens = pairs = heads = 0
    for prompt, cached, completion in calls:
        last = prompt + completion - 1
        tokens += last - cached
        pairs += _causal(last) - _causal(cached)
        heads += completion
    return ModelShape.of(model).flops(tokens, pairs, heads)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    least = min(len(one), len(other))
    return next((i for i in range(least) if one[i] != other[i]), least)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


# --- the work that was done ----------------------------------------------------------------------


def counted_flops(work: Callable[[], object]) -> float:
    """FLOPs that ``work`` dispatches in this thread."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """torch counts none of its CPU kernel; under a causal mask it leaves out the half that is hidden."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[2] * width // (2 if causal else 1)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **_: Any) -> int:
    """Five products where forward has two: the kernel computes the scores anew."""
    causal = rest[3]  # after the output, its log-sum and dropout
    return _attention(query, key, value, causal=causal) * 5 // 2


@dataclass
class Passes:
    """Forward passes of a model: how many, and the seconds in them."""

    count: int = 0
    seconds: float = 0.0


@contextmanager
def passes(model: Any) -> Iterator[Passes]:
    """Count the model's forward passes within."""
    seen, started = Passes(), 0.0

    def before(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(*_: Any) -> None:
        seen.count += 1
        seen.seconds += time.perf_counter() - started

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- what the machine can do ---------------------------------------------------------------------


@dataclass(frozen=True)
class Attainable:
    """FLOP/s of products in the model's dtype: a large square one, and its linear layers on few and on many rows."""

    square: float
    decoding: float  # DECODING rows
    prefill: float  # PREFILL rows
    side: int = 0  # of the square one

    def __str__(self) -> str:
        return (
            f"{self.square / 1e9:.0f} GFLOP/s in a {self.side} × {self.side} product, in the model's own"
            f" {self.prefill / 1e9:.0f} on {PREFILL} rows and {self.decoding / 1e9:.0f} on {DECODING}"
        )


@dataclass(frozen=True)
class Floor:
    """The least FLOPs of some work on a machine."""

    flops: float
    machine: Attainable

    def __str__(self) -> str:
        return f"floor        {self.flops / 1e9:.1f} GFLOP; attainable: {self.machine}"

    def near(self, seconds: float) -> str:
        """The time of the floor at the two attainable rates, in percent of ``seconds``."""
        square, own = (100 * self.flops / rate / seconds for rate in (self.machine.square, self.machine.prefill))
        return f"the floor is {square:.1f} % of its time ({own:.1f} % at the rate of the model's own shapes)"


SQUARE, DECODING, PREFILL = 2048, 64, 2048


def attainable(model: Any, threads: Iterable[int]) -> Attainable:
    """The best over the given numbers of threads."""
    rates = []
    for count in threads:
        torch.set_num_threads(count)
        rates.append((_square(model), _layers(model, DECODING), _layers(model, PREFILL)))
    return Attainable(*(max(column) for column in zip(*rates, strict=True)), _side(model))


def seconds(work: Callable[[], object]) -> float:
    """Of one run, a GPU's work included."""
    _settle()
    started = time.perf_counter()
    work()
    _settle()
    return time.perf_counter() - started


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _side(model: Any) -> int:
    return SQUARE if model.device.type == "cpu" else 4 * SQUARE


def _square(model: Any) -> float:
    weight, size = next(model.parameters()), _side(model)
    one = torch.randn(size, size, device=weight.device, dtype=weight.dtype)
    return 2.0 * size**3 / _fastest(lambda: one @ one, 5)


def _layers(model: Any, rows: int) -> float:
    """All linear layers of one forward pass, output head included."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], device=w.device, dtype=w.dtype) for w in weights}

    def work() -> None:
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)

    with torch.inference_mode():
        return 2.0 * rows * sum(w.numel() for w in weights) / _fastest(work, 20)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    work()
    return min(seconds(work) for _ in range(repeats))
