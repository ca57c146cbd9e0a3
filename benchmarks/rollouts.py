"""Program rollouts per second: the engine against ``generate`` in two ways and against DSPy over a vLLM server.

    python benchmarks/rollouts.py [--model seed] [--threads 1,2] [--repeats 5] [--vllm PYTHON | --vllm-url URL]

Workload: 64 rollouts at once (8 examples × 8 samples, temperature 1) of the task ``arithmetic``, with its own
prompts and lengths. The engine runs everything: DSPy, batching, sampling, scoring. So does the optional peer *vllm*:
``dspy.Evaluate`` over a vLLM server on the same cores (``vllm_peer.py``). The other two are given the prompts of
every call ready as tensors and only sample: *per call* one ``model.generate`` per call, *raw batched* one left-padded
``model.generate`` for all 64 rollouts per step of the program, without prefix sharing. Each runs alone and at its own
best number of threads. FLOPs and the floor are what ``floors.py`` says. The last line is JSON: how many times the
engine is faster.

    python benchmarks/rollouts.py --device cuda                            # the same on a GPU
    python benchmarks/rollouts.py --device cuda --dtype bfloat16 --shape qwen3-0.6b --lengths 180/30 512/128

With ``--shape`` it is random tokens and a model of that shape with random weights (``token_rollouts.py``).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floors
import shapes
import token_rollouts
import torch
import vllm_peer

import colever
from colever.pipelines.rollout import run_rollouts
from colever.types import Rollout

EXAMPLES, SAMPLES, PER_CALL = 8, 8, 8  # one call at a time is slow: timed on PER_CALL rollouts and scaled


def main() -> None:
    options = arguments()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    if options.shape:
        token_rollouts.main(options)
        return
    lm = colever.engine_lm(options.model, device=options.device, dtype=options.dtype)
    workload = Workload(colever.load_task("arithmetic"), lm)
    made = workload.rollouts(0)
    print(described(made))
    results = [measured(peer, options) for peer in peers(workload, made)]
    floor = floor_of(workload, options)
    print_work(workload, results, floor)
    rates = {r.peer.name: r.rate for r in results}
    print(json.dumps({
        "vs_generate_per_call": round(rates["engine"] / rates["per call"], 2),
        "vs_raw_batched": round(rates["engine"] / rates["raw batched"], 2),
        "vs_vllm_cpu": against_vllm(workload, rates["engine"], floor, options),
    }))  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="seed")
    help_threads = "numbers to try, such as 1,2 (default: powers of two up to the cores)"
    parser.add_argument("--threads", type=counts, default=powers(os.cpu_count() or 1), help=help_threads)
    parser.add_argument("--repeats", type=int, default=5)
    shapes.add_options(parser, None)
    parser.add_argument("--lengths", nargs="*", default=["180/30"], help="prompt/completion tokens, with --shape")
    parser.add_argument("--skip-per-call", action="store_true", help="with --shape")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--vllm", metavar="PYTHON", help="python of an environment with vLLM: starts the peer's server")
    server.add_argument("--vllm-url", metavar="URL", help="a server that runs, such as http://127.0.0.1:8000/v1")
    help_dtype = "the peer's types to try, such as float32,bfloat16 (default: the engine's, float32)"
    parser.add_argument("--vllm-dtype", type=lambda text: text.split(","), default=["float32"], help=help_dtype)
    options = parser.parse_args()
    if options.device != "cpu":
        options.threads = [torch.get_num_threads()]  # the work is elsewhere
    return options


def counts(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def powers(cores: int) -> list[int]:
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]


def described(rollouts: Sequence[Rollout]) -> str:
    calls = [step.completion for rollout in rollouts for step in rollout.steps]
    prompts, tokens = [len(c.prompt_ids) for c in calls], [len(c.completion_ids) for c in calls]
    score = statistics.mean(r.score.total for r in rollouts if r.score is not None)
    return (
        f"{len(rollouts)} rollouts, {len(calls)} calls; prompts of {statistics.mean(prompts):.0f} tokens, completions"
        f" of {statistics.mean(tokens):.1f} on average, {max(tokens)} at most; mean score {score:.2f}"
    )


# --- the work ------------------------------------------------------------------------------------


class Workload:
    """The task's rollouts in the engine, and its calls in plain ``generate``."""

    def __init__(self, task: Any, lm: Any) -> None:
        self.task, self.lm, self.engine = task, lm, lm.engine
        self.examples = task.examples("train")[:EXAMPLES]

    def rollouts(self, seed: int) -> list[Rollout]:
        return run_rollouts(
            self.task.program(), self.examples, lm=self.lm, score=self.task.score, fail=self.task.fail,
            samples=SAMPLES, temperature=1.0, max_tokens=self.task.max_tokens, seed=seed,
        )  # fmt: skip

    def generate(self, prompts: Sequence[Sequence[int]]) -> None:
        longest, engine = max(map(len, prompts)), self.engine
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=engine.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=engine.device)
        engine.model.generate(
            ids, attention_mask=mask, max_new_tokens=self.task.max_tokens, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, eos_token_id=sorted(engine.end_ids), pad_token_id=engine.tokenizer.pad_token_id or 0,
        )  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """``work`` takes a seed; it does 1 / ``scale`` of the rollouts."""

    name: str
    work: Callable[[int], object]
    scale: float = 1.0


def peers(workload: Workload, made: Sequence[Rollout]) -> list[Peer]:
    calls = [[step.completion.prompt_ids for step in rollout.steps] for rollout in made]
    by_step = [[c[i] for c in calls if len(c) > i] for i in range(max(map(len, calls)))]
    every = len(made) // PER_CALL
    return [
        Peer("engine", workload.rollouts),
        Peer("raw batched", lambda _: [workload.generate(prompts) for prompts in by_step]),
        Peer("per call", lambda _: [workload.generate([p]) for c in calls[::every] for p in c], float(every)),
    ]


def against_vllm(workload: Workload, rate: float, floor: floors.Floor, options: argparse.Namespace) -> float | None:
    """How many times faster ``rate`` is than DSPy over vLLM; None where no server is given."""
    if not (options.vllm or options.vllm_url):
        print(vllm_peer.HINT)
        return None
    engine, task = workload.engine, workload.task

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return task.fail("").total if "unparsed" in prediction else task.score(example, prediction, ()).total

    rows = [example for _, example in workload.examples for _ in range(SAMPLES)]
    work = vllm_peer.Work(task.program(), rows, metric, task.max_tokens)
    if options.vllm_url:
        peer = vllm_peer.measure(work, options.vllm_url, options.vllm_url, options.repeats)
    else:
        peer = vllm_peer.best(work, options.vllm, Path(engine.source), options.repeats, options.vllm_dtype)
    counted = floors.served_flops(engine.model, peer.calls)
    print(
        f"vllm         best: {peer.how}; mean score {peer.score:.2f}; {counted / 1e9:.1f} GFLOP in {len(peer.calls)}"
        f" calls; {floor.near(len(rows) / peer.rate)}"
    )
    return round(rate / peer.rate, 2)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A peer's rollouts/s at its best number of threads, and the seconds of one run of its work."""

    peer: Peer
    rate: float
    threads: int
    seconds: float


def measured(peer: Peer, options: argparse.Namespace) -> Result:
    """The best number of threads, median over ``repeats``."""
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        peer.work(0)  # warm-up
        seconds = statistics.median(timed(peer.work, seed) for seed in range(1, options.repeats + 1))
        rate = EXAMPLES * SAMPLES / (seconds * peer.scale)
        print(f"{peer.name:12s} {threads:2d} threads: {rate:8.1f} rollouts/s ({seconds * peer.scale * 1000:.0f} ms)")
        results.append(Result(peer, rate, threads, seconds))
    return max(results, key=lambda r: r.rate)


def timed(work: Callable[[int], object], seed: int) -> float:
    torch.manual_seed(seed)
    return floors.seconds(lambda: work(seed))


def floor_of(workload: Workload, options: argparse.Namespace) -> floors.Floor:
    """Of one run's own tokens."""
    calls = [
        (step.completion.prompt_ids, len(step.completion.completion_ids))
        for rollout in workload.rollouts(1)
        for step in rollout.steps
    ]
    model = workload.engine.model
    floor = floors.Floor(floors.least_flops(model, calls), floors.attainable(model, options.threads))
    print(floor)
    return floor


def print_work(workload: Workload, results: Sequence[Result], floor: floors.Floor) -> None:
    """Per peer the FLOPs counted, how near it is to the floor, and its forward passes."""
    for r in results:
        torch.set_num_threads(r.threads)
        with floors.passes(workload.engine.model) as seen:
            timed(r.peer.work, 1)
        counted = floors.counted_flops(lambda peer=r.peer: timed(peer.work, 1)) * r.peer.scale
        print(
            f"{r.peer.name:12s} {counted / 1e9:.1f} GFLOP counted; {floor.near(r.seconds * r.peer.scale)};"
            f" {seen.count * r.peer.scale:.0f} forward passes of {1000 * seen.seconds / seen.count:.2f} ms"
        )


if __name__ == "__main__":
    main()
