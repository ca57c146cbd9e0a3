"""The synchronous core: token requests in, token outputs out, batched, every shared prompt token computed once.

Knows a loaded causal language model and nothing of text, messages, DSPy or weights on disk. Shapes: B rows
(requests), T cached positions, V vocabulary entries.

It departs from ``generate`` of transformers in three places, each for speed on small models: prompts are computed
by ``prefix_store``, without padding; keys and values lie in buffers that are allocated once; and rows that have ended
leave the batch as soon as they are a quarter of it. On a GPU a step is captured once and replayed (``decode_graph``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from colever.engines import decode_graph
from colever.engines.attention import SharedCache, decoding_attention
from colever.engines.base_model import steady_attention
from colever.engines.decode_graph import FixedDecoding, Live, Replayer, Written, capturable
from colever.engines.prefix_store import PrefixStore, causal, prefill
from colever.engines.sampling import Sampling, sample, uniforms
from colever.types import Cost

_LEAVE_AT = 0.25  # share of ended rows at which the batch is compacted


@dataclass(frozen=True)
class TokenRequest:
    """One completion to make. ``seed`` alone decides its random numbers; ``stop`` strings end it.

    ``predictor``: whose LoRA adapter answers, where the model holds one per predictor; the engine switches it on.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    predictor: str | None = None


@dataclass(frozen=True)
class TokenOutput:
    """What came out: ids with their log-probabilities; the end token is among them where it was sampled."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


class Generator:
    """Batched decoding on one model; not thread-safe (the engine holds the lock)."""

    def __init__(
        self,
        model: Any,
        end_ids: Iterable[int],
        decode: Callable[[Sequence[int]], str],
        max_batch_tokens: int,
    ) -> None:
        self.model = model
        self.decode = decode
        self.max_batch_tokens = max_batch_tokens
        self.device = next(model.parameters()).device
        self.end_ids = torch.tensor(sorted(end_ids), device=self.device)
        self.shape = ModelShape.of(model)
        self.replayer = Replayer(self.device)
        self.fixed_steps = self.device.type == "cuda" and capturable(model)  # on a CPU they only cost

    def store(self) -> PrefixStore:
        """An empty one, for batches whose prompts have much in common."""
        return PrefixStore(self.max_batch_tokens)

    def run(self, requests: Sequence[TokenRequest], store: PrefixStore) -> tuple[list[TokenOutput], Cost]:
        """Outputs in the order of ``requests``, and what they cost (tokens computed, FLOPs).

        ``store`` holds what earlier batches computed under the same weights, and takes in what this one does.
        """
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].prompt_ids, i))
        outputs: dict[int, TokenOutput] = {}
        cost = Cost()
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), decoding_attention(self.model), steady_attention():
                for chunk in self._chunks(requests, order):
                    rows = [requests[i] for i in chunk]
                    made, spent = self._run_chunk(rows, store)
                    store.trim()
                    outputs.update(zip(chunk, made, strict=True))
                    cost = cost + spent
        finally:
            self.model.train(training)
        return [outputs[i] for i in range(len(requests))], cost

    def _chunks(self, requests: Sequence[TokenRequest], order: Sequence[int]) -> Iterator[list[int]]:
        """Consecutive requests whose caches fit into ``max_batch_tokens`` together (at least one)."""
        chunk: list[int] = []
        longest = 0
        for i in order:
            size = len(requests[i].prompt_ids) + requests[i].max_tokens
            if chunk and max(longest, size) * (len(chunk) + 1) > self.max_batch_tokens:
                yield chunk
                chunk, longest = [], 0
            chunk.append(i)
            longest = max(longest, size)
        if chunk:
            yield chunk

    def _run_chunk(self, rows: Sequence[TokenRequest], store: PrefixStore) -> tuple[list[TokenOutput], Cost]:
        prompts = list(dict.fromkeys(r.prompt_ids for r in rows))
        filled = prefill(self.model, prompts, store)
        number = {p: i for i, p in enumerate(prompts)}
        prompt_B = [number[r.prompt_ids] for r in rows]
        fixed = self._fixed(rows)
        cache = self._cache(store, prompts, [filled.places[i] for i in range(len(prompts))], prompt_B, rows, fixed)
        decoding = _Decoding(self, rows, cache)
        logits = filled.logits_PV[torch.tensor(prompt_B, device=self.device)]
        outputs = decoding.run_fixed(logits) if fixed else decoding.run(logits)
        return outputs, self.shape.cost(filled.tokens, filled.pairs, len(prompts), rows, outputs)

    def _fixed(self, rows: Sequence[TokenRequest]) -> bool:
        """Whether steps of fixed shapes serve these rows better."""
        wanted = self.fixed_steps and not self.replayer.failed
        return wanted and not any(r.stop for r in rows) and max(r.max_tokens for r in rows) > decode_graph.LEAST

    def _cache(
        self,
        store: PrefixStore,
        prompts: Sequence[tuple[int, ...]],
        places: Sequence[np.ndarray],
        prompt_B: Sequence[int],
        rows: Sequence[TokenRequest],
        fixed: bool,
    ) -> SharedCache:
        """Keys and values of the rows' prompts: what all begin with once and the rest by row.

        Or every prompt once, where as many rows have each and none has to leave.
        """
        longest, common = max(map(len, prompts)), common_prefix(prompts)
        counts = set(np.bincount(prompt_B).tolist())
        by_row = common + len(rows) * (longest - common)
        if fixed and len(counts) == 1 and len(prompts) * longest < by_row:
            heads, tails = list(places), [places[0][:0]] * len(rows)
        else:
            heads, tails = [places[0][:common]], [places[i][common:] for i in prompt_B]
        most, own = max(r.max_tokens for r in rows), max(map(len, tails))
        room = most + (-(own + most) % 8 if fixed else 0)  # kernels of a GPU like lengths in eights
        kept = list(zip(store.keys, store.values, strict=True))
        return SharedCache(kept, *self._padded(heads), *self._padded(tails), room)

    def _padded(self, places: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Places padded on the left with 0, and by how much each is."""
        longest = max(map(len, places))
        pad = [longest - len(p) for p in places]
        whole = np.stack([np.concatenate([np.zeros(n, dtype=np.int64), p]) for n, p in zip(pad, places, strict=True)])
        return torch.from_numpy(whole).to(self.device), torch.tensor(pad, device=self.device)

    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: SharedCache) -> torch.Tensor:
        """Next-token logits (B, V) of one more token in each row."""
        output = self.model(
            input_ids=ids[:, None],
            attention_mask=cache.decode_mask(),
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.advance()
        return output.logits[:, -1]


def common_prefix(prompts: Sequence[tuple[int, ...]], least: int = 8) -> int:
    """How many tokens all prompts start with, leaving each at least one of its own; 0 if under ``least``."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # in tuple order the extremes differ first
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if shared >= least else 0


class _Decoding:
    """The decode loop of one chunk: its state is what is still running."""

    def __init__(self, owner: Generator, rows: Sequence[TokenRequest], cache: SharedCache) -> None:
        self.owner, self.rows, self.cache = owner, rows, cache
        device = owner.device
        most = max(r.max_tokens for r in rows)
        self.ids_BT = torch.zeros(len(rows), most, dtype=torch.long, device=device)
        self.logprobs_BT = torch.zeros(len(rows), most, device=device)
        self.length_B = torch.zeros(len(rows), dtype=torch.long, device=device)
        self.limit_B = torch.tensor([r.max_tokens for r in rows], device=device)
        self.next_limit = min(r.max_tokens for r in rows)
        self.position_B = torch.tensor([len(r.prompt_ids) for r in rows], device=device)
        self.how = Sampling.of([r.temperature for r in rows], [r.top_k for r in rows], [r.top_p for r in rows], device)
        drawn = np.zeros((most, len(rows)))
        for b, r in enumerate(rows):
            if r.temperature > 0:
                drawn[: r.max_tokens, b] = uniforms(r.seed, r.max_tokens)
        self.uniform_TB = torch.from_numpy(drawn).to(device)
        self.stops = [b for b, r in enumerate(rows) if r.stop]

    def run(self, logits: torch.Tensor) -> list[TokenOutput]:
        live = torch.arange(len(self.rows), device=self.owner.device)  # batch row -> request
        running = torch.ones(len(self.rows), dtype=torch.bool, device=self.owner.device)
        how, t, whole = self.how, 0, True
        while True:
            drawn = self.uniform_TB[t] if whole else self.uniform_TB[t, live]
            ids, logprobs = sample(logits, drawn, how)
            self._write(t, live, whole, ids, logprobs)
            ended = self._ended(t, live, ids) & running
            t += 1
            if bool(ended.any()):
                self.length_B[live[ended]] = t
                running &= ~ended
                left = int(running.sum())
                if left == 0:
                    break
                if left <= (1 - _LEAVE_AT) * len(live):
                    keep = running.nonzero()[:, 0]
                    live, ids, how, whole = live[keep], ids[keep], how.select(keep), False
                    running = running[keep]
                    self.cache.keep(keep)
            logits = self.owner.step(ids, self.position_B[live] + (t - 1), self.cache)
        return self._outputs()

    def run_fixed(self, logits: torch.Tensor) -> list[TokenOutput]:
        """As ``run``, in steps of fixed shapes; not for stop strings, which are looked for in every step."""
        ids, logprobs = sample(logits, self.uniform_TB[0], self.how)
        row = torch.arange(len(self.rows), device=self.owner.device)
        self._write(0, row, True, ids, logprobs)
        ended = self._ended(0, row, ids)
        self.length_B += ended
        written = Written(self.ids_BT, self.logprobs_BT, self.length_B)
        live = Live(row, ids, self.position_B, self.limit_B, self.uniform_TB, ~ended, self.how)
        FixedDecoding(self.owner.step, self.cache, self.owner.end_ids, written, live, self.owner.replayer).run()
        return self._outputs()

    def _write(self, t: int, live: torch.Tensor, whole: bool, ids: torch.Tensor, logprobs: torch.Tensor) -> None:
        if whole:
            self.ids_BT[:, t] = ids
            self.logprobs_BT[:, t] = logprobs
        else:
            self.ids_BT[live, t] = ids
            self.logprobs_BT[live, t] = logprobs

    def _ended(self, t: int, live: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ended = (ids[:, None] == self.owner.end_ids).any(1)
        if t + 1 >= self.next_limit:
            ended |= self.limit_B[live] <= t + 1
        if self.stops:
            ended |= self._stopped(t, live)
        return ended

    def _stopped(self, t: int, live: torch.Tensor) -> torch.Tensor:
        """Rows whose text holds one of their stop strings."""
        hit = []
        for b in live.tolist():
            stop = self.rows[b].stop
            text = self.owner.decode(self.ids_BT[b, : t + 1].tolist()) if stop else ""
            hit.append(any(s in text for s in stop))
        return torch.tensor(hit, device=live.device)

    def _outputs(self) -> list[TokenOutput]:
        all_ids, all_logprobs, lengths = self.ids_BT.tolist(), self.logprobs_BT.tolist(), self.length_B.tolist()
        ends = set(self.owner.end_ids.tolist())
        outputs = []
        for row, ids, logprobs, length in zip(self.rows, all_ids, all_logprobs, lengths, strict=True):
            ids = ids[:length]
            stopped = ids[-1] in ends or (bool(row.stop) and any(s in self.owner.decode(ids) for s in row.stop))
            outputs.append(TokenOutput(tuple(ids), tuple(logprobs[:length]), "stop" if stopped else "length"))
        return outputs


@dataclass(frozen=True)
class ModelShape:
    """The numbers from which FLOPs are counted: 2 per weight of a product, 4·heads·width per pair attended."""

    layers: int
    body: int  # weights of the linear layers, the head left out
    head: int  # weights of the output projection
    attention: int  # query heads × head width, of one layer

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        left_out = {id(head), *_idle(model)}
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and id(m) not in left_out]
        body = sum(m.in_features * m.out_features for m in linear)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, body, head.weight.numel(), config.num_attention_heads * width)

    def flops(self, tokens: int, pairs: int, heads: int) -> float:
        """Of ``tokens`` through the body, ``pairs`` of (query, key) per layer, ``heads`` tokens through the head."""
        return 2.0 * self.body * tokens + 4.0 * self.layers * self.attention * pairs + 2.0 * self.head * heads

    def cost(
        self, tokens: int, pairs: int, prompts: int, rows: Sequence[TokenRequest], outputs: Sequence[TokenOutput]
    ) -> Cost:
        """Of one chunk: ``tokens`` of its ``prompts`` that were computed, and each completion's but the last."""
        fed = completion = 0
        for row, output in zip(rows, outputs, strict=True):
            steps, start = len(output.ids) - 1, len(row.prompt_ids)
            pairs += causal(start + steps) - causal(start)
            fed += steps
            completion += len(output.ids)
        flops = self.flops(tokens + fed, pairs, prompts + fed)
        return Cost(prompt_tokens=tokens, completion_tokens=completion, flops=flops)


def _idle(model: Any) -> Iterator[int]:
    """Ids of the matrices of LoRA adapters that are switched off."""
    for layer in model.modules():
        for kind in getattr(layer, "adapter_layer_names", ()):
            yield from (id(m) for name, m in getattr(layer, kind).items() if name not in layer.active_adapters)
