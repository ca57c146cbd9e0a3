"""What DSPy, rollouts and scoring cost on each engine: program rollouts per second against the same calls without them.

    python benchmarks/engines.py [--model seed] [--repeats 5] [--threads 1] [--vllm PYTHON]

Workload: 64 rollouts at once (8 examples × 8 samples, temperature 1) of the task ``arithmetic``, two calls each. With
DSPy an engine runs everything: program, adapter, requests, parsing, scoring. Its raw peer is handed the prompts of
every call as token ids and only samples, 64 at once: *transformers* by one left-padded ``model.generate`` per step of
the program, *vLLM* by a bare asynchronous client (aiohttp) on the same server, whose 64 tasks ask for the same prompts
and exactly as many tokens, with log-probabilities and ids as the engine does. The server's prefix cache is emptied
before each run of either. The last line is JSON: rollouts per second with DSPy over those without; null without vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import rollouts
import torch

import colever
from colever.engines.lm import open_engine
from colever.engines.vllm_engine import VllmEngine
from colever.engines.vllm_server import PYTHON, Live, Serving
from colever.types import Rollout, Weights

Calls = list[list[tuple[tuple[int, ...], int]]]  # of each rollout: a call's prompt, and how many tokens it wrote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="seed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch's, in this process")
    parser.add_argument("--vllm", metavar="PYTHON", default=os.environ.get(PYTHON), help=f"default: {PYTHON}")
    options = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    found = {"transformers_vs_raw": transformers(options), "vllm_vs_raw": vllm(options)}
    print(json.dumps(found))


def transformers(options: argparse.Namespace) -> float:
    work = workload(open_engine(options.model))

    def raw(made: Sequence[Rollout]) -> None:
        calls = calls_of(made)
        for step in range(max(map(len, calls))):
            work.generate([of[step][0] for of in calls if len(of) > step])

    return compared("transformers", work, raw, options.repeats)


def vllm(options: argparse.Namespace) -> float | None:
    if not options.vllm:
        print(f"vllm: not measured; give --vllm PYTHON or set {PYTHON} (see docs/vllm.md)")
        return None
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # it may be told to empty its prefix cache
    engine = open_engine(options.model, serving=Serving(options.vllm, told=print))
    assert isinstance(engine, VllmEngine)
    engine.load(Weights())
    live = engine.server.ensure()
    try:
        return compared(
            "vllm", workload(engine), lambda made: asyncio.run(bare(live, calls_of(made))), options.repeats,
            lambda: live.client.post("/reset_prefix_cache", {}),
        )  # fmt: skip
    finally:
        engine.close()


def workload(engine: Any) -> rollouts.Workload:
    return rollouts.Workload(colever.load_task("arithmetic"), colever.engine_lm(engine))


def compared(
    name: str,
    work: rollouts.Workload,
    raw: Callable[[Sequence[Rollout]], None],
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Median over pairs: a run with DSPy, then the calls that it made without."""
    raw(work.rollouts(0))  # warm-up
    pairs = []
    for seed in range(1, repeats + 1):
        before()
        with_dspy, made = timed(lambda seed=seed: work.rollouts(seed))
        before()
        without, _ = timed(lambda made=made: raw(made))
        pairs.append((with_dspy, without))
    count = rollouts.EXAMPLES * rollouts.SAMPLES
    rates = [count / statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    ratio = statistics.median(without / with_dspy for with_dspy, without in pairs)
    print(f"{name:12s} with DSPy {rates[0]:7.1f} rollouts/s, without {rates[1]:7.1f}; ratio {ratio:.2f}", flush=True)
    return round(ratio, 2)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def calls_of(made: Sequence[Rollout]) -> Calls:
    return [
        [(step.completion.prompt_ids, len(step.completion.completion_ids)) for step in rollout.steps]
        for rollout in made
    ]


async def bare(live: Live, calls: Calls) -> None:
    """All rollouts at once, each call after the one before it."""
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(live.client.address, headers=live.client.headers, connector=limits) as session:
        await asyncio.gather(*(one(session, live.base, place, asked) for place, asked in enumerate(calls)))


async def one(session: aiohttp.ClientSession, model: str, place: int, asked: list[tuple[tuple[int, ...], int]]) -> None:
    for prompt, tokens in asked:
        body = {
            "model": model, "prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "temperature": 1.0,
            "seed": place, "logprobs": 0, "return_token_ids": True,
        }  # fmt: skip
        async with session.post("/v1/completions", json=body) as reply:
            reply.raise_for_status()
            wrote = len((await reply.json())["choices"][0]["token_ids"])
            if wrote != tokens:
                raise RuntimeError(f"{wrote} tokens came back, {tokens} were asked for")


if __name__ == "__main__":
    main()
