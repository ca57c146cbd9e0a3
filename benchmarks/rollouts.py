"""Program rollouts per second: the engine against one ``generate`` per call and against raw batched ``generate``.

    python benchmarks/rollouts.py [--model seed] [--threads 1,2] [--repeats 5]

Workload: 64 rollouts at once (8 examples × 8 samples, temperature 1) of the task ``arithmetic``, with its own
prompts and lengths. The engine runs everything: DSPy, batching, sampling, scoring. The two peers are given the
prompts of every call ready as tensors and only sample: *per call* one ``model.generate`` per call, *raw batched*
one left-padded ``model.generate`` for all 64 rollouts per step of the program, without prefix sharing. Each of the
three runs at its own best number of threads. The last line is JSON: how many times the engine is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable

import torch

import colever
from colever.pipelines.rollout import run_rollouts
from colever.types import Rollout

EXAMPLES, SAMPLES, PER_CALL = 8, 8, 8  # one call at a time is slow: timed on PER_CALL rollouts and scaled


def main() -> None:
    options = arguments()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    task, lm = colever.load_task("arithmetic"), colever.engine_lm(options.model)
    engine = lm.engine

    def rollouts(seed: int) -> list[Rollout]:
        return run_rollouts(
            task.program(),
            task.examples("train")[:EXAMPLES],
            lm=lm,
            score=task.score,
            fail=task.fail,
            samples=SAMPLES,
            temperature=1.0,
            max_tokens=task.max_tokens,
            seed=seed,
        )

    made = rollouts(0)
    calls = [[step.completion.prompt_ids for step in rollout.steps] for rollout in made]
    by_step = [[c[i] for c in calls if len(c) > i] for i in range(max(map(len, calls)))]
    tokens = [len(step.completion.completion_ids) for rollout in made for step in rollout.steps]
    print(
        f"{len(made)} rollouts, {len(tokens)} calls; prompts of {', '.join(str(len(s[0])) for s in by_step)} tokens;"
        f" completions of {sum(tokens) / len(tokens):.1f} tokens on average, {max(tokens)} at most"
    )

    def raw(prompts: list[tuple[int, ...]]) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=engine.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=engine.device)
        engine.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=task.max_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(engine.end_ids),
            pad_token_id=engine.tokenizer.pad_token_id or 0,
        )

    every = len(made) // PER_CALL
    peers: dict[str, tuple[Callable[[int], object], float]] = {
        "engine": (rollouts, 1.0),
        "raw batched": (lambda _: [raw(prompts) for prompts in by_step], 1.0),
        "per call": (lambda _: [raw([p]) for c in calls[::every] for p in c], float(every)),
    }
    choices = [int(n) for n in options.threads.split(",") if n] or powers(os.cpu_count() or 1)
    rates = {
        name: rate(name, work, scale, len(made), choices, options.repeats) for name, (work, scale) in peers.items()
    }
    print(json.dumps({
        "vs_generate_per_call": round(rates["engine"] / rates["per call"], 2),
        "vs_raw_batched": round(rates["engine"] / rates["raw batched"], 2),
    }))  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="seed")
    help_threads = "numbers to try, such as 1,2 (default: powers of two up to the cores)"
    parser.add_argument("--threads", default="", help=help_threads)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def powers(cores: int) -> list[int]:
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]


def rate(
    name: str, work: Callable[[int], object], scale: float, rollouts: int, threads: list[int], repeats: int
) -> float:
    """Rollouts per second at the best number of threads, median over ``repeats``."""
    best = 0.0
    for count in threads:
        torch.set_num_threads(count)
        work(0)  # warm-up
        seconds = sorted(timed(work, seed) for seed in range(1, repeats + 1))[repeats // 2] * scale
        print(f"{name:12s} {count:2d} threads: {rollouts / seconds:8.1f} rollouts/s ({seconds * 1000:.0f} ms)")
        best = max(best, rollouts / seconds)
    return best


def timed(work: Callable[[int], object], seed: int) -> float:
    torch.manual_seed(seed)
    started = time.perf_counter()
    work(seed)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
