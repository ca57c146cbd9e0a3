"""Keys and values of prompts, computed once per token and kept from batch to batch.

Knows token ids, tensors and a causal language model; nothing of requests, sampling or text. Within a batch prompts
share every common prefix (``prefix_tree``); from one batch to the next a store keeps what was computed, so that an
agent whose history grows pays for what is new in each call. Shapes: P prompts, T packed tokens, K known ones, KV
key-value heads, D head width, V vocabulary entries.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from colever.engines.branches import branch_attention_in
from colever.engines.prefix_layout import Layout, build_layout
from colever.engines.prefix_tree import LEAST, PrefixTree, common_length, prefix_tree

RUNS = 4  # prompts of so many batches are remembered: a loop may call several predictors in turn


class PrefixStore:
    """Keys and values by token, (tokens, KV, D) per layer, and where the tokens of recent prompts lie in them.

    Holds ``max_tokens`` between two batches at most. Not thread-safe; ``version`` names the weights that they are of.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.version = ""
        self._run = 0
        self._clear()

    def _clear(self) -> None:
        self.used = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._places: dict[bytes, np.ndarray] = {}
        self._run_of: dict[bytes, int] = {}
        self._ordered: list[bytes] | None = None

    def begin(self, version: str) -> None:
        """A new batch, under these weights: what is of others is dropped."""
        if version != self.version:
            self._clear()
        self.version = version
        self._run += 1

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Where the longest known beginning of a prompt lies; empty if it is short. The last token is never known."""
        if self._ordered is None:
            self._ordered = sorted(self._places)
        at = bisect_left(self._ordered, _key(ids))
        best = np.empty(0, dtype=np.int64)
        for near in self._ordered[max(0, at - 1) : at + 1]:  # in order, the neighbours share most
            shared = min(common_length(_ids(near), ids), len(ids) - 1)
            if shared >= LEAST and shared > len(best):
                best = self._places[near][:shared]
        return best

    def append(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> int:
        """Take in (T, KV, D) per layer; the place of the first."""
        begin, more = self.used, len(keys[0])
        if not begin:
            self.keys, self.values = list(keys), list(values)
        else:
            if begin + more > len(self.keys[0]):
                self.keys, self.values = ([_grown(x, begin, more) for x in kind] for kind in (self.keys, self.values))
            for kept, new in zip([*self.keys, *self.values], [*keys, *values], strict=True):
                kept[begin : begin + more] = new
        self.used = begin + more
        return begin

    def remember(self, ids: np.ndarray, places: np.ndarray) -> None:
        key = _key(ids)
        self._places[key], self._run_of[key], self._ordered = places, self._run, None

    def trim(self) -> None:
        """Forget prompts of earlier batches, and as many more as it takes to hold ``max_tokens``."""
        oldest = self._run - RUNS + 1
        self._forget(oldest)
        if self.used <= self._max_tokens:
            return
        live = self._live()
        while len(live) > self._max_tokens // 2 and self._places:
            oldest += 1
            self._forget(oldest)
            live = self._live()
        place = torch.from_numpy(live)
        self.keys, self.values = ([x[place.to(x.device)] for x in kind] for kind in (self.keys, self.values))
        self._places = {key: np.searchsorted(live, places) for key, places in self._places.items()}
        self.used = len(live)

    def _forget(self, oldest: int) -> None:
        old = [key for key, run in self._run_of.items() if run < oldest]
        for key in old:
            del self._places[key], self._run_of[key]
        self._ordered = None if old else self._ordered

    def _live(self) -> np.ndarray:
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self._places.values()]))


@dataclass(frozen=True)
class Prefilled:
    """Of P prompts: next-token logits (P, V), each token's place in the store, and what was computed for it."""

    logits_PV: torch.Tensor
    places: list[np.ndarray]
    tokens: int
    pairs: int  # (query, key) per layer


def prefill(model: Any, prompts: Sequence[tuple[int, ...]], store: PrefixStore) -> Prefilled:
    """Compute what the store does not have of distinct ``prompts``, every shared token once, and add it."""
    arrays = [np.asarray(p, dtype=np.int64) for p in prompts]
    found = [store.find(a) for a in arrays]
    ids, mask = _padded(arrays)
    tree = prefix_tree(ids, mask, 1).with_known([len(f) for f in found])
    device = next(model.parameters()).device
    layout = build_layout(ids.to(device), mask, 1, tree)
    known = [found[s.row][s.start : s.stop] for s in tree.segments if s.known]
    cache = _PackedCache(store, torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *known])).to(device))
    branch_P = layout.branch_N[layout.target_N.argsort()]
    with branch_attention_in(model):
        output = model(
            input_ids=layout.input_ids_T[None],
            position_ids=layout.positions_T[None],
            past_key_values=cache,
            use_cache=True,
            layout=layout,
            logits_to_keep=branch_P,
        )
    begin = store.append(cache.keys, cache.values)
    places = _places(tree, layout, found, begin, branch_P.cpu().numpy())
    for array, place in zip(arrays, places, strict=True):
        store.remember(array, place)
    pairs = sum(causal(s.stop) - causal(s.start) for s in tree.segments if not s.known)
    return Prefilled(output.logits[0], places, tree.tokens, pairs + sum(map(len, prompts)))


def causal(length: int) -> int:
    """(query, key) pairs among ``length`` tokens."""
    return length * (length + 1) // 2


def _padded(arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded left, with one place for a token that is to come."""
    width = max(map(len, arrays))
    ids = np.zeros((len(arrays), width + 1), dtype=np.int64)
    mask = np.zeros_like(ids)
    mask[:, width] = 1
    for row, array in enumerate(arrays):
        ids[row, width - len(array) : width] = array
        mask[row, width - len(array) : width] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _places(
    tree: PrefixTree, layout: Layout, found: Sequence[np.ndarray], begin: int, branch_P: np.ndarray
) -> list[np.ndarray]:
    """The place of each token of each prompt in the store, whose packed row begins at ``begin``."""
    places = []
    for group in tree.groups:
        place = np.empty(group.prompt, dtype=np.int64)
        place[-1] = begin + branch_P[group.rows[0]]
        at = group.segment
        while at >= 0:
            s = tree.segments[at]
            if s.known:
                place[s.start : s.stop] = found[s.row][s.start : s.stop]
            else:
                first = begin + layout.begins[at] - layout.known
                place[s.start : s.stop] = np.arange(first, first + s.tokens)
            at = s.parent
        places.append(place)
    return places


class _PackedCache(Cache):
    """What the model writes keys and values to, and reads the known ones from, during ``prefill``."""

    def __init__(self, store: PrefixStore, known_K: torch.Tensor) -> None:
        super().__init__(layers=[])
        self.store, self.known_K = store, known_K
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, KV, T, D) → (1, KV, K + T, D)."""
        pool = []
        kept = (self.store.keys, self.store.values)
        for new, old, computed in zip((key_states, value_states), kept, (self.keys, self.values), strict=True):
            computed.append(new[0].transpose(0, 1))
            if len(self.known_K):
                known = old[layer_idx].index_select(0, self.known_K).transpose(0, 1)[None]
                new = torch.cat([known, new], 2)
            pool.append(new)
        return pool[0], pool[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are given

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return 0, 0  # no mask is made: the layout says who sees whom


def _grown(tensor: torch.Tensor, used: int, more: int) -> torch.Tensor:
    grown = tensor.new_empty(max(2 * used, used + more), *tensor.shape[1:])
    grown[:used] = tensor[:used]
    return grown


def _key(ids: np.ndarray) -> bytes:
    return ids.astype(">i4").tobytes()  # bytes in the order of the numbers


def _ids(key: bytes) -> np.ndarray:
    return np.frombuffer(key, dtype=">i4")
