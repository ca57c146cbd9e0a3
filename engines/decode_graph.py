"""Decoding in steps of fixed shapes, which a GPU replays as one graph.

Knows a generator's parts and CUDA graphs; nothing of requests or prompts. A decoding step of a small model is hundreds
of short kernels, and launching them one by one from Python takes longer than running them. Here everything that a step
reads and writes stays at its place, its counters are on the device, and one step is captured and then replayed.

It departs from the plain loop in what shapes demand: attention reads the whole buffer of own keys, masked where nothing
is written; rows that have ended go on and write what nobody reads; and the host looks every ``LOOK`` steps whether
any row is left. Shapes: B rows of the chunk, L live ones, T steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from colever.engines.attention import SharedCache
from colever.engines.memory import out_of_memory
from colever.engines.sampling import Sampling, sample

LOOK = 4  # steps between two looks of the host at what is left
LEAST = 12  # steps that a chunk must have at most: for fewer, capturing costs more than replaying saves
LEAVE_AT = 0.75  # share of ended rows at which the batch is compacted and captured again

Step = Callable[[torch.Tensor, torch.Tensor, SharedCache], torch.Tensor]  # ids, positions, cache → logits (L, V)


@dataclass
class Written:
    """What a chunk's steps write: ids and log-probabilities (B, T), lengths (B,)."""

    ids_BT: torch.Tensor
    logprobs_BT: torch.Tensor
    length_B: torch.Tensor


@dataclass
class Live:
    """The rows that still run, and what they need (L,): their row, last token, its position, limit, uniforms (T, L)."""

    row: torch.Tensor
    ids: torch.Tensor
    position: torch.Tensor
    limit: torch.Tensor
    uniform: torch.Tensor
    running: torch.Tensor
    how: Sampling

    def select(self, keep: torch.Tensor) -> Live:
        parts = (self.row, self.ids, self.position, self.limit, self.uniform.T, self.running)
        row, ids, position, limit, uniform, running = (x[keep] for x in parts)
        return Live(row, ids, position, limit, uniform.T.contiguous(), running, self.how.select(keep))


def capturable(model: Any) -> bool:
    """Whether transformers says that the model's step asks the device for nothing, and its weights are plain.

    A capture that fails half-way can leave torch's random generator unusable, so it is not simply tried.
    """
    return bool(getattr(model, "_can_compile_fullgraph", False)) and not getattr(model, "is_quantized", False)


class Replayer:
    """Captures and replays steps on one device; ``failed`` turns True where a model cannot be captured."""

    def __init__(self, device: torch.device) -> None:
        there = device.type == "cuda"
        self.failed = False
        self._stream = torch.cuda.Stream(device) if there else None
        self._pool = torch.cuda.graph_pool_handle() if there else None
        self._last: Any = None  # keeps the pool alive, from which the next graph takes the same memory

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """``step`` as a graph, or itself where that is not to be had. It must have run once as it is."""
        if self.failed or self._stream is None:
            return step
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    step()
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # such as a model that asks the device for a number on its way
            if out_of_memory(error):
                raise
            self.failed = True
            warnings.warn(f"decoding steps are launched one by one: they cannot be captured: {error}", stacklevel=2)
            return step
        torch.cuda.current_stream().wait_stream(self._stream)
        self._last = graph
        return graph.replay


class FixedDecoding:
    """The steps of one chunk after its first token."""

    def __init__(
        self, step: Step, cache: SharedCache, end_ids: torch.Tensor, written: Written, live: Live, replayer: Replayer
    ) -> None:
        self._forward, self.cache, self.end_ids, self.written, self.live = step, cache, end_ids, written, live
        self._replayer = replayer
        self._at = torch.zeros(1, dtype=torch.long, device=end_ids.device)  # of the token written last
        cache.fix()

    def run(self) -> None:
        """Until every row has ended."""
        most, t = self.written.ids_BT.shape[1], 1
        step: Callable[[], None] | None = None
        while t < most and (left := int(self.live.running.sum())):
            if self.cache.groups == 1 and left <= (1 - LEAVE_AT) * len(self.live.row):
                keep = self.live.running.nonzero()[:, 0]
                self.live, step = self.live.select(keep), None
                self.cache.keep(keep)
            if step is None:
                self._step()
                t += 1
                step = self._replayer.captured(self._step) if most - t >= LEAST else self._step
            for _ in range(min(LOOK, most - t)):
                step()
                t += 1

    def _step(self) -> None:
        live, out = self.live, self.written
        logits = self._forward(live.ids, live.position, self.cache)
        self._at += 1
        live.position += 1
        ids, logprobs = sample(logits, live.uniform.index_select(0, self._at)[0], live.how)
        live.ids.copy_(ids)
        place = (live.row, self._at.expand_as(live.row))
        out.ids_BT.index_put_(place, ids)
        out.logprobs_BT.index_put_(place, logprobs)
        ended = (ids[:, None] == self.end_ids).any(1) | (live.limit <= self._at + 1)
        length = torch.where(live.running & ended, self._at + 1, out.length_B[live.row])
        out.length_B.index_put_((live.row,), length)
        live.running.logical_and_(~ended)
