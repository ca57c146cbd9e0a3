"""A program of two predictors whose policy gradient is known exactly, on a real model and the real sampler.

Every predictor writes one token of a vocabulary of eight. The second predictor's prompt holds the first one's token, so
a trajectory is a pair (a, b) and its reward a table. All 8 × 8 trajectories can be enumerated: the expected reward and
its gradient come from autograd, without any sampling. With ``stops`` a first token of the lower half ends the program
after one call.

Shapes: E examples, V tokens, D parameters; K = 1 + V contexts (the first prompt, then the second one after each token).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from colever.engines.calls import stable_seed
from colever.engines.generation import Generator, TokenRequest
from colever.optimizers.trajectories import Row
from colever.types import Completion, Rollout, Score, Step

E, V = 3, 8
K = 1 + V


def tokenizer() -> PreTrainedTokenizerFast:
    """Eight words; the first one also pads, the second one also ends."""
    words = [f"w{i}" for i in range(V)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w1", unk_token="w0")


def tiny_model() -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=8, tie_word_embeddings=False, initializer_range=0.4, pad_token_id=0, eos_token_id=1,
        max_position_embeddings=32,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def prompt(example: int, first: int | None) -> tuple[int, ...]:
    """Of the first predictor, or of the second one after token ``first``."""
    head = (2, 3 + example, 7, 5)
    return head if first is None else (*head, 6, first, 4)


@dataclass
class Bandit:
    """Rewards (E, V, V) in [0, 1] of (first, second) tokens; a row's first entry counts where the program stops."""

    model: Qwen3ForCausalLM
    stops: bool = False
    table: int = 18  # seed of the rewards; this one has a large gradient, so that fewer rollouts show it to 1 %

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.table)
        self.reward = 0.5 * torch.rand(E, V, 1, generator=g).round() + 0.5 * torch.rand(E, V, V, generator=g).round()
        self.generator = Generator(self.model, {1}, lambda ids: "", 1 << 20)

    def ends(self, first: int) -> bool:
        return self.stops and first < V // 2

    def logprobs(self) -> torch.Tensor:
        """(E, K, V): every predictor's distribution in every context."""
        rows = []
        for e in range(E):
            after = torch.tensor([prompt(e, a) for a in range(V)])
            logits = [self.model(torch.tensor([prompt(e, None)])).logits[:, -1], self.model(after).logits[:, -1]]
            rows.append(torch.cat(logits).log_softmax(-1))
        return torch.stack(rows)

    def expected_reward(self) -> torch.Tensor:
        """Mean over examples of the sum over all trajectories of probability times reward."""
        p = self.logprobs().exp()
        second = (p[:, 1:] * self.reward).sum(-1)
        stop = torch.tensor([self.ends(a) for a in range(V)])
        return (p[:, 0] * torch.where(stop, self.reward[:, :, 0], second)).sum(-1).mean()

    def exact_gradient(self) -> torch.Tensor:
        return flat(torch.autograd.grad(self.expected_reward(), list(self.model.parameters())))

    def scores(self) -> torch.Tensor:
        """(E · K · V, D): the gradient of every log-probability."""
        parameters, table = list(self.model.parameters()), self.logprobs()
        return torch.stack([flat(torch.autograd.grad(x, parameters, retain_graph=True)) for x in table.flatten()])

    def rollouts(self, updates: int, size: int, seed: int = 0) -> list[list[Rollout]]:
        """Of every update ``size`` rollouts per example, drawn by the engine's generator."""
        runs = [(u, e, s) for u in range(updates) for e in range(E) for s in range(size)]
        first = self._draw([(prompt(e, None), (seed, u, e, s, 0)) for u, e, s in runs])
        going = [i for i, c in enumerate(first) if not self.ends(c.completion_ids[0])]
        asked = [(prompt(runs[i][1], first[i].completion_ids[0]), (seed, *runs[i], 1)) for i in going]
        second = dict(zip(going, self._draw(asked), strict=True))
        made: list[list[Rollout]] = [[] for _ in range(updates)]
        for i, (u, e, s) in enumerate(runs):
            calls = [Step("first", 0, first[i])] + ([Step("second", 0, second[i])] if i in second else [])
            a, b = first[i].completion_ids[0], second[i].completion_ids[0] if i in second else 0
            score = Score(float(self.reward[e, a, b]), {})
            made[u].append(Rollout(str(e), s, tuple(calls), score, {}, version="v"))
        return made

    def _draw(self, asked: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Completion]:
        requests = [TokenRequest(ids, 1, 1.0, seed=stable_seed(*key)) for ids, key in asked]
        outputs, _ = self.generator.run(requests, self.generator.store())
        return [
            Completion("", r.prompt_ids, o.ids, o.logprobs, o.finish_reason, "v")
            for r, o in zip(requests, outputs, strict=True)
        ]


def place(row: Row) -> tuple[int, int, int]:
    """Where a row's log-probability stands in (E, K, V)."""
    context = 1 + row.prompt_ids[5] if len(row.prompt_ids) > 4 else 0
    return int(row.group[0]), context, row.completion_ids[0]


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
