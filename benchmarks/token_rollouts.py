"""Completions per second of a model of a real size: the engine against ``generate`` in two ways, on random tokens.

Knows prompts of one length that G completions each are sampled from, all of one length; no programs or tasks. Random
weights end no completion, so that every peer makes the same number of tokens. ``rollouts.py`` runs it for ``--shape``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import floors
import shapes
import torch

from colever.engines.generation import TokenRequest
from colever.engines.lm import open_engine

PROMPTS, SAMPLES, PER_CALL = 8, 8, 1  # one call at a time is slow: PER_CALL of them are timed, once, and scaled


def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = shapes.checkpoint(options.shape, options.dtype, options.device, Path(folder))
        engine = open_engine(source, device=options.device, dtype=options.dtype)
    print(f"{options.shape}, {options.dtype}, {shapes.hardware(options.device)}")
    line: dict[str, Any] = {}
    for text in options.lengths:
        line |= _compare(engine, *shapes.lengths(text), options)
    print(json.dumps(line))


def _compare(engine: Any, prompt: int, completion: int, options: argparse.Namespace) -> dict[str, Any]:
    requests = _requests(engine, prompt, completion)
    calls = [(r.prompt_ids, completion) for r in requests]
    floor = floors.least_flops(engine.model, calls)
    by_peer = {
        "engine": lambda: engine.generate(requests),
        "raw batched": lambda: _generate(engine, requests),
        "per call": lambda: [_generate(engine, [r]) for r in requests[:PER_CALL]],
    }
    line, rates = {}, {}
    for name, work in by_peer.items():
        if name == "per call" and options.skip_per_call:
            continue
        scale = len(requests) / PER_CALL if name == "per call" else 1.0
        taken = _median(work, 1 if name == "per call" else options.repeats) * scale
        rates[name] = len(requests) / taken
        print(
            f"{prompt}/{completion} {name:12s} {taken:7.3f} s, {rates[name]:8.1f} completions/s,"
            f" {rates[name] * completion:9.0f} tokens/s, {floor / taken / 1e12:6.2f} TFLOP/s of the floor's",
            flush=True,
        )
        line[f"{name} {prompt}/{completion}"] = round(rates[name], 2)
    for name in list(rates)[1:]:
        line[f"vs {name} {prompt}/{completion}"] = round(rates["engine"] / rates[name], 2)
    return line


def _requests(engine: Any, prompt: int, completion: int) -> list[TokenRequest]:
    source = random.Random(0)
    most = engine.model.config.vocab_size
    heads = [tuple(source.randrange(4, most) for _ in range(prompt)) for _ in range(PROMPTS)]
    return [
        TokenRequest(head, completion, 1.0, seed=100 * i + g) for i, head in enumerate(heads) for g in range(SAMPLES)
    ]


def _generate(engine: Any, requests: list[TokenRequest]) -> None:
    ids = torch.tensor([r.prompt_ids for r in requests], device=engine.device)
    engine.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=requests[0].max_tokens, do_sample=True,
        temperature=1.0, top_k=0, top_p=1.0, eos_token_id=sorted(engine.end_ids), pad_token_id=0,
    )  # fmt: skip


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    return statistics.median(floors.seconds(work) for _ in range(repeats))
