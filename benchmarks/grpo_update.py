"""One GRPO update (forward, loss, backward, clipping, optimizer step) with shared prefixes against TRL's own layout.

The first workload is what the seed model writes for ``arithmetic``: two predictors' prompts, 8 examples × G 8, with
their own lengths; the others are random tokens. Same rows, same 1M-parameter Qwen3 (random weights, float32), same
loss. TRL runs at its fastest batch size, Colever at the fastest size of a pass that needs at most half of TRL's memory,
each at its best number of threads; then repeats alternate and medians are compared. Peak memory is that of a process
of its own: what an update adds to the process with model and optimizer in place. TRL's tensors are built before the
clock starts, ours within it. FLOPs and the floor are what ``floors.py`` says.

    python benchmarks/grpo_update.py                    # all workloads
    python benchmarks/grpo_update.py --repeats 3 --only arithmetic
    python benchmarks/grpo_update.py --sizes            # time and memory of each peer at every size of a pass

The last line is JSON: ``speedup_vs_trl`` and ``memory_vs_trl`` are those of 180/30, the others name their workload.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import floors

VOCABULARY, GROUPS, GROUP_SIZE = 1024, 8, 8
WORKLOADS = {"arithmetic": None, "180/30": (180, 30), "50/200": (50, 200)}  # prompt, completion; None: a task's own
KEYS = {"arithmetic": "arithmetic", "180/30": "vs_trl", "50/200": "long_completions"}  # on the last line
PEERS = ("trl", "colever")
SIZES = {"trl": (4, 8, 16, 32, 64), "colever": (512, 1024, 2048, 4096)}  # rows; computed tokens


def main() -> None:
    options = _options()
    if options.memory:
        print(json.dumps(_peak(options)))
        return
    if options.sizes:
        for name in WORKLOADS:
            if options.only in (None, name):
                _print_sizes(name, options)
        return
    results = {name: _compare(name, options) for name in WORKLOADS if options.only in (None, name)}
    line: dict[str, float] = {}
    for name, r in results.items():
        key = KEYS[name]
        line |= {f"speedup_{key}": round(r["speedup"], 2), f"memory_{key}": round(r["memory"], 3)}
    print(json.dumps(line | {"max_logprob_gap": max(r["gap"] for r in results.values())}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", help="numbers of threads to try (default: 1 to all cores)")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--sizes", action="store_true", help="time and memory at every size of a pass")
    parser.add_argument("--memory", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=4096, help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(name: str, options: argparse.Namespace) -> dict[str, float]:
    lengths = WORKLOADS[name]
    rows = _task_rows(name) if lengths is None else _random_rows(*lengths)
    with tempfile.TemporaryDirectory() as folder:
        file = _write_rows(rows, Path(folder))
        stock = _best("trl", rows, Path(folder) / "trl", options.threads, SIZES["trl"])
        memory = {"trl": _memory("trl", file, stock[2])}
        needs = {size: _memory("colever", file, size) for size in SIZES["colever"]}
        half = [size for size in needs if needs[size]["update"] <= memory["trl"]["update"] / 2]
        ours = _best("colever", rows, Path(folder) / "colever", options.threads, half or SIZES["colever"][:1])
        peers, memory["colever"] = {"trl": stock, "colever": ours}, needs[ours[2]]
        seconds: dict[str, list[float]] = {p: [] for p in PEERS}
        for _ in range(options.repeats):
            for peer, (run, threads, _) in peers.items():
                seconds[peer].append(_timed(run, threads))
        gap = _gap(rows, Path(folder) / "gap")
        work = {p: floors.counted_flops(peers[p][0]) for p in PEERS}
    median = {p: statistics.median(s) for p, s in seconds.items()}
    prompts, tokens = {r.prompt_ids for r in rows}, [len(r.completion_ids) for r in rows]
    print(f"{name}: {len(rows)} rows, {len(prompts)} prompts of {statistics.mean(map(len, prompts)):.0f} tokens, "
          f"completions of {statistics.mean(tokens):.0f}")  # fmt: skip
    for p in PEERS:
        _, threads, size = peers[p]
        unit = "rows" if p == "trl" else "tokens"
        print(f"  {p:8} {median[p] * 1e3:8.1f} ms  (min {min(seconds[p]) * 1e3:.1f}; {threads} threads, {size} {unit} "
              f"per pass)  update {memory[p]['update']:7.1f} MiB, process {memory[p]['process']:7.1f} MiB")  # fmt: skip
    _print_work(rows, work, median)
    print(f"  speed-up {median['trl'] / median['colever']:.2f}, log-probability gap {gap:.2g}", flush=True)
    return {
        "speedup": median["trl"] / median["colever"],
        "memory": memory["colever"]["update"] / max(memory["trl"]["update"], 1e-9),
        "gap": gap,
    }


def _print_work(rows: list[Any], work: dict[str, float], median: dict[str, float]) -> None:
    """FLOPs counted per peer, the floor (forward and backward of every distinct token), and how near each peer is."""
    calls = [(r.prompt_ids, len(r.completion_ids)) for r in rows]
    model = _model()
    floor = floors.Floor(3 * floors.least_flops(model, calls), floors.attainable(model, range(1, _cores() + 1)))
    print(f"  {floor}")
    for peer in PEERS:
        print(f"  {peer:8} {work[peer] / 1e9:.1f} GFLOP counted; {floor.near(median[peer])}")


def _print_sizes(name: str, options: argparse.Namespace) -> None:
    """Milliseconds and MiB of both peers at every size of a pass, on one thread."""
    lengths = WORKLOADS[name]
    rows = _task_rows(name) if lengths is None else _random_rows(*lengths)
    with tempfile.TemporaryDirectory() as folder:
        file = _write_rows(rows, Path(folder))
        for peer in PEERS:
            for size in SIZES[peer]:
                _, run = BUILD[peer](rows, size, Path(folder) / f"{peer}-{size}")
                run()
                fastest = min(_timed(run, 1) for _ in range(options.repeats))
                memory = _memory(peer, file, size)["update"]
                unit = "rows" if peer == "trl" else "tokens"
                print(f"{name} {peer:8} {size:5} {unit:6} {fastest * 1e3:8.0f} ms {memory:8.0f} MiB", flush=True)


def _write_rows(rows: list[Any], folder: Path) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps([[r.prompt_ids, r.completion_ids, r.advantage] for r in rows]))
    return file


# --- what is trained on --------------------------------------------------------------------------


def _random_rows(prompt: int, completion: int) -> list[Any]:
    source = random.Random(0)
    rows = []
    for group in range(GROUPS):
        head = [source.randrange(4, VOCABULARY) for _ in range(prompt)]
        for sample in range(GROUP_SIZE):
            tail = [source.randrange(4, VOCABULARY) for _ in range(completion)]
            rows.append(_row(group, sample, head, tail, source.gauss(0, 1)))
    return rows


def _task_rows(name: str) -> list[Any]:
    """Every call of the task's rollouts, in order of length: TRL's batches then pad least."""
    from colever import engine_lm, load_task, run_rollouts

    task = load_task(name)
    rollouts = run_rollouts(
        task.program(), task.examples("train")[:GROUPS], lm=engine_lm("seed"), score=task.score, fail=task.fail,
        samples=GROUP_SIZE, temperature=1.0, max_tokens=task.max_tokens,
    )  # fmt: skip
    source = random.Random(0)
    rows = [
        _row(r.example_id, r.sample, s.completion.prompt_ids, s.completion.completion_ids, source.gauss(0, 1))
        for r in rollouts
        for s in r.steps
    ]
    return sorted(rows, key=lambda row: (len(row.prompt_ids), row.prompt_ids, len(row.completion_ids)))


def _row(group: Any, sample: int, prompt: Any, completion: Any, advantage: float) -> Any:
    from colever.optimizers.trajectories import Row

    zeros = (0.0,) * len(completion)
    return Row((str(group), "p", 0), sample, tuple(prompt), tuple(completion), zeros, 0.0, advantage, 1.0)


def _batch(rows: list[Any]) -> Any:
    from colever.optimizers.trajectories import TrainingBatch

    tokens = sum(len(r.completion_ids) for r in rows)
    return TrainingBatch(tuple(rows), len(rows), tokens, GROUPS, 0, len(rows), 0, 0, 0.5, {}, {})


# --- the peers -----------------------------------------------------------------------------------


def _model() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=384, tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _colever(rows: list[Any], size: int, folder: Path) -> tuple[Any, Callable[[], None]]:
    from colever.optimizers.grpo import ProgramTrainer
    from colever.optimizers.grpo_settings import GrpoSettings

    settings = GrpoSettings(
        updates=1, learning_rate=1e-5, warmup=0, schedule="constant", temperature=1.0, beta=0.0, loss="dapo",
        max_grad_norm=1.0, max_completion=256, max_tokens=size, save_every=10**6, seed=0,
    )  # fmt: skip
    batch = _batch(rows)
    trainer = ProgramTrainer(
        _model(), _tokenizer(), settings, folder, lambda update: batch, lambda update, metrics: None
    )
    return trainer, _update(trainer, lambda: trainer.training_step(trainer.model, {}))


def _trl(rows: list[Any], size: int, folder: Path) -> tuple[Any, Callable[[], None]]:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=256, bf16=False,
        report_to="none", use_cpu=True, gradient_checkpointing=False, learning_rate=1e-5, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=_model(), reward_funcs=lambda **kw: [0.0], args=arguments, processing_class=_tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": [""] * 2}),
    )  # fmt: skip
    tokens = torch.tensor(float(sum(len(r.completion_ids) for r in rows)))
    inputs = [{**_padded(rows[i : i + size]), "num_items_in_batch": tokens} for i in range(0, len(rows), size)]

    def step() -> None:
        trainer.model.train()
        for part in inputs:
            trainer.accelerator.backward(trainer.compute_loss(trainer.model, part))

    return trainer, _update(trainer, step)


def _padded(rows: list[Any]) -> dict[str, Any]:
    import torch

    left, right = max(len(r.prompt_ids) for r in rows), max(len(r.completion_ids) for r in rows)
    heads = [(r.prompt_ids, left - len(r.prompt_ids)) for r in rows]
    tails = [(r.completion_ids, right - len(r.completion_ids)) for r in rows]
    return {
        "prompt_ids": torch.tensor([[0] * gap + list(ids) for ids, gap in heads]),
        "prompt_mask": torch.tensor([[0] * gap + [1] * len(ids) for ids, gap in heads]),
        "completion_ids": torch.tensor([list(ids) + [0] * gap for ids, gap in tails]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * gap for ids, gap in tails]),
        "advantages": torch.tensor([r.advantage for r in rows]),
    }


def _update(trainer: Any, step: Callable[[], Any]) -> Callable[[], None]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()

    def run() -> None:
        step()
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return run


BUILD = {"trl": _trl, "colever": _colever}


# --- measuring -----------------------------------------------------------------------------------


def _best(
    peer: str, rows: list[Any], folder: Path, threads: list[int] | None, sizes: Sequence[int]
) -> tuple[Callable[[], None], int, int]:
    """The peer's update with its fastest number of threads and size of a pass."""
    tried = []
    for size in sizes:
        _, run = BUILD[peer](rows, size, folder)
        run()
        for count in threads or range(1, _cores() + 1):
            tried.append((min(_timed(run, count) for _ in range(2)), count, size, run))
    _, count, size, run = min(tried, key=lambda t: t[0])
    return run, count, size


def _cores() -> int:
    return os.cpu_count() or 1


def _timed(run: Callable[[], None], threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _gap(rows: list[Any], folder: Path) -> float:
    """Greatest difference between the two layouts' log-probabilities of any completion token."""
    import torch

    trainer, _ = _colever(rows, 4096, folder)
    stock, _ = _trl(rows, len(rows), folder)
    inputs = _padded(rows)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        ours, theirs = (t._get_per_token_logps_and_entropies(t.model, ids, mask, width)[0] for t in (trainer, stock))
    return float(((ours - theirs).abs() * inputs["completion_mask"]).max())


def _memory(peer: str, file: Path, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", peer, "--rows", str(file), "--size", str(size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _peak(options: argparse.Namespace) -> dict[str, float]:
    """MiB that updates add to the process, and the whole process's peak."""
    import torch

    torch.set_num_threads(1)
    rows = [_row(tuple(p)[:1], i, p, c, a) for i, (p, c, a) in enumerate(json.loads(options.rows.read_text()))]
    with tempfile.TemporaryDirectory() as folder:
        _, tiny = BUILD[options.memory](rows[:2], 2, Path(folder) / "tiny")
        tiny()  # lazy imports, kernels and the optimizer's state are not the update's own
        _, run = BUILD[options.memory](rows, options.size, Path(folder))
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here (getrusage's would hold the parent's)
        for _ in range(3):
            run()
        peak = _status("VmHWM")
    return {"update": peak - before, "process": peak}


def _status(name: str) -> float:
    """A memory figure of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
