"""Training the seed model from scratch: tokenizer, batches from the mixture, and a resumable loop.

Knows the mixture and a plain transformer; no tasks, no levers. Step ``i`` trains on conversations drawn from
``seed`` and ``i`` alone, so a build that was interrupted goes on exactly where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from colever.engines.seed import mixture
from colever.engines.seed.tokenizer import ASSISTANT, END, MARKS, SYSTEM, USER, train_tokenizer
from colever.errors import UsageError

STATE = "build-state.pt"
CARD = "card.json"  # written last: a folder that has one holds a finished model
MICRO_BATCH_TOKENS = 2400  # little padding, and activations that stay in the cache
OnStep = Callable[[int, int, float, float], None]  # step, steps, loss, tokens per second


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, hardware aside."""

    seed: int = 0
    steps: int = 6000
    copying: int = 400  # the first steps, which see random tokens to copy and nothing else
    broad_from: int = 2400  # the step from which the mixture is broad and has random tokens to look up
    looking_up: int = 600  # the first of those steps, which see little else
    looked_up: int = 3800  # the step from which there are none of them
    conversations: int = 28  # a step; about 5,800 tokens, 88 answers
    copies: int = 8  # rows of random tokens to copy beside them
    lookups: int = 16  # rows of random tokens to look up beside them, between ``broad_from`` and ``looked_up``
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.25  # the share of steps, at the end, in which the rate falls to 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    vocabulary: int = 1024
    tokenizer_conversations: int = 6000
    hidden: int = 128
    layers: int = 4
    intermediate: int = 384
    heads: int = 4
    kv_heads: int = 2
    positions: int = 4096

    def scaled(self, steps: int) -> Recipe:
        """The same recipe in ``steps`` steps, its parts in proportion."""
        parts = {
            n: max(1, round(getattr(self, n) * steps / self.steps))
            for n in ("copying", "broad_from", "looking_up", "looked_up")
        }
        return replace(self, steps=steps, **parts)


def build(
    out: Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    on_step: OnStep | None = None,
    save_every: int = 100,
    replace_finished: bool = False,
) -> dict[str, Any]:
    """Train the seed model into the folder ``out`` and return its card (recipe, loss, tokens, seconds).

    Continues from ``out``'s build state where there is one made by the same recipe. Until the training has ended,
    what else is in ``out`` stays as it is. Raises UsageError, before anything is written, where the state was made by
    another recipe, where ``out`` holds a finished model and ``replace_finished`` is False, and for a device that is
    not here.
    """
    device = _device(device)
    _make_folder(out, replace_finished)
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(_tokenizer_texts(recipe), recipe.vocabulary)
    model = Qwen3ForCausalLM(_model_config(recipe, tokenizer))
    model.to(torch.device(device))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    progress = _resume(out / STATE, recipe, model, optimizer)
    started, tokens_here = time.monotonic(), 0
    for step in range(progress["step"], recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        rows = list(_rows(recipe, step, tokenizer))
        loss = _train_step(model, optimizer, rows, recipe, tokenizer, device)
        seconds = time.monotonic() - started
        tokens_here += sum(map(len, rows))
        progress = {
            "step": step + 1,
            "tokens": progress["tokens"] + sum(map(len, rows)),
            "loss": 0.98 * progress["loss"] + 0.02 * loss if step else loss,
            "seconds": progress["seconds"],
        }
        if on_step:
            on_step(step + 1, recipe.steps, progress["loss"], tokens_here / seconds)
        if (step + 1) % save_every == 0 and step + 1 < recipe.steps:
            _save_state(out / STATE, recipe, model, optimizer, {**progress, "seconds": progress["seconds"] + seconds})
    total = progress["seconds"] + time.monotonic() - started
    card = {
        "recipe": asdict(recipe),
        "tokens": progress["tokens"],
        "loss": round(progress["loss"], 4),
        "seconds": round(total),
        "parameters": model.num_parameters(),
        "device": device,
    }
    _publish(out, model, tokenizer, card)
    return card


def _device(name: str) -> str:
    """``auto`` resolved; raises UsageError for a device that is not here."""
    there = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if _cuda() else [])]
    if name == "auto":
        return "cuda" if _cuda() else "cpu"
    if name not in there:
        raise UsageError(f"--device {name!r}; accepted here: auto, {', '.join(there)}")
    return name


def _make_folder(out: Path, replace_finished: bool) -> None:
    if (out / CARD).is_file() and not replace_finished:
        raise UsageError(f"{out} holds a finished model; accepted: another folder as --out, or --replace to lose it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made: {error.strerror}; accepted: a folder, new or not") from error


def _cuda() -> bool:
    return bool(torch.cuda.is_available())


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, constant, then linear to 0 over the last ``decay`` share of the steps."""
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


def _rows(recipe: Recipe, step: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    rng = Random(f"{recipe.seed}:{step}")
    if step < recipe.copying:
        yield from (_copy(rng, tokenizer) for _ in range(16 * recipe.copies))
        return
    yield from (_copy(rng, tokenizer) for _ in range(recipe.copies))
    broad, conversations = step >= recipe.broad_from, recipe.conversations
    lookups = recipe.lookups if recipe.broad_from <= step < recipe.looked_up else 0
    if broad and step < recipe.broad_from + recipe.looking_up:
        conversations, lookups = conversations // 4, 5 * lookups // 2
    yield from (_look_up(rng, tokenizer) for _ in range(lookups))
    for _ in range(conversations):
        chat = mixture.messages(mixture.sample(rng, broad))
        ids: Any = tokenizer.apply_chat_template(chat, return_dict=False)
        yield ids


def _copy(rng: Random, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Random tokens and the same again, whole or with its pairs in another order.

    The shortest text in which attending to what followed a token before is all there is to learn. Everything that
    reads a fact from its context (a code book, an example, a field's name) needs that first.
    """
    system, user, assistant, end = _marks(tokenizer)
    tokens = [rng.randrange(len(MARKS), len(tokenizer)) for _ in range(rng.randint(2, 24))]
    answer = tokens
    if rng.random() < 0.5:
        tokens = tokens[: len(tokens) // 2 * 2]
        order = rng.sample(range(0, len(tokens), 2), len(tokens) // 2)
        answer = [token for i in order for token in tokens[i : i + 2]]
    return [system, end, user, *tokens, end, assistant, *answer, end]


def _look_up(rng: Random, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A book of random keys and values, in the system's message or nowhere, and turns that ask for a key's value.

    Question and answer may have further tokens around key and value, the same in all turns, as fields' names are.
    """
    system, user, assistant, end = _marks(tokenizer)

    def some(*lengths: int) -> list[int]:
        return [rng.randrange(len(MARKS), len(tokenizer)) for _ in range(rng.choice(lengths))]

    keys = rng.sample(range(len(MARKS), len(tokenizer)), rng.randint(2, 6))
    book = {key: some(1, 2) for key in keys}
    before, behind, opening, closing = (some(0, 0, 1, 2) for _ in range(4))
    row, asked = [system], rng.sample(keys, len(keys))
    if rng.random() < 0.4:
        sign, comma = some(0, 1), some(0, 1)
        row += [token for key, value in book.items() for token in (key, *sign, *value, *comma)]
        asked = []
    row.append(end)
    for key in asked + rng.choices(keys, k=rng.randint(4, 10)):
        row += [user, *before, key, *behind, end, assistant, *opening, *book[key], *closing, end]
    return row


def _marks(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    marks: Any = tokenizer.convert_tokens_to_ids([SYSTEM, USER, ASSISTANT, END])
    return list(marks)


def _tokenizer_texts(recipe: Recipe) -> Iterator[str]:
    rng = Random(f"{recipe.seed}:tokenizer")
    for _ in range(recipe.tokenizer_conversations):
        yield from (m["content"] for m in mixture.messages(mixture.sample(rng)))


def _model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def _train_step(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    rows: list[list[int]],
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    device: str,
) -> float:
    """One update; the loss is the mean over all answer tokens of the step, whatever the micro-batches."""
    marks: Any = tokenizer.convert_tokens_to_ids([tokenizer.pad_token, ASSISTANT, END])
    pad, start, end = marks
    batches = [_pad(batch, pad, start, end) for batch in _micro_batches(sorted(rows, key=len), MICRO_BATCH_TOKENS)]
    answers = sum(int(mask.sum()) for _, mask in batches)
    total = 0.0
    for ids_B_T, mask_B_T in batches:
        ids, target = ids_B_T.to(device), mask_B_T[:, 1:].to(device)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][target]
        loss = F.cross_entropy(model.lm_head(hidden), ids[:, 1:][target], reduction="sum") / answers
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _micro_batches(rows: list[list[int]], budget: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for row in rows:
        if batch and len(row) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pad(rows: list[list[int]], pad: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (B, T) and the mask (B, T) of answer tokens: after the assistant's mark, up to its end."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    # An answer is open where more assistant marks than ends-after-a-mark lie before a position.
    opened = (ids == start).long().cumsum(1) - (ids == start).long()
    role_ends = (ids == end).long().cumsum(1) - (ids == end).long()  # system and every user turn end too
    inside = (2 * opened - role_ends) == 0
    mask = inside & (opened > 0) & (ids != start) & (ids != pad)
    return ids, mask


def _resume(path: Path, recipe: Recipe, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if not path.exists():
        return {"step": 0, "tokens": 0, "loss": 0.0, "seconds": 0.0}
    state = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    if state["recipe"] != asdict(recipe):
        raise UsageError(
            f"{path} was made by another recipe; delete it to start anew, or pass the same settings to continue"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return dict(state["progress"])


def _save_state(
    path: Path, recipe: Recipe, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    fresh = path.with_suffix(".tmp")
    torch.save(
        {
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": progress,
        },
        fresh,
    )
    os.replace(fresh, path)


def _publish(out: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, card: dict[str, Any]) -> None:
    """Written aside, then moved into place file by file, the card last; the build state goes when all is there.

    After a kill amid the moves there is no card, and the same command, which finds its state, puts it right.
    """
    fresh = out / ".new"  # inside: the same file system and permissions as ``out``
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    (fresh / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (out / CARD).unlink(missing_ok=True)
    for file in sorted(fresh.iterdir(), key=lambda f: f.name == CARD):
        os.replace(file, out / file.name)
    fresh.rmdir()
    (out / STATE).unlink(missing_ok=True)
