"""One GRPO update (forward, loss, backward, clipping, optimizer step) with shared prefixes against TRL's own layout.

The first workload is what the seed model writes for ``arithmetic``: two predictors' prompts, 8 examples × G 8, with
their own lengths; the others are random tokens. Same rows, same 1M-parameter Qwen3 (random weights, float32), same
loss. On a CPU TRL runs at its fastest batch size, Colever at the fastest size of a pass that needs half of its memory,
each at its best number of threads; then repeats alternate and medians are compared. Peak memory is that of a process
of its own: what an update adds to the process with model and optimizer in place. TRL's tensors are built before the
clock starts, ours within it. FLOPs and the floor are what ``floors.py`` says.

    python benchmarks/grpo_update.py                    # all workloads
    python benchmarks/grpo_update.py --repeats 3 --only arithmetic
    python benchmarks/grpo_update.py --sizes            # time and memory of each peer at every size of a pass
    python benchmarks/grpo_update.py --device cuda --dtype bfloat16 --shape qwen3-0.6b --lengths 512/128 2000/200

On a GPU it is random tokens alone; both peers run at every size of a pass, and their memory is what torch allocated:
in all, and what an update adds to model and optimizer. Useful FLOP/s count the floor alone.

The last line is JSON: ``speedup_vs_trl`` and ``memory_vs_trl`` are those of 180/30, the others name their workload.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import floors
import shapes
import torch
from update_peers import BUILD, Model, padded, random_rows, row, task_rows

from colever.errors import LeverError

WORKLOADS = {"arithmetic": None, "180/30": (180, 30), "50/200": (50, 200)}  # prompt, completion; None: a task's own
KEYS = {"arithmetic": "arithmetic", "180/30": "vs_trl", "50/200": "long_completions"}  # on the last line
PEERS = ("trl", "colever")
SIZES = {"trl": (4, 8, 16, 32, 64), "colever": (512, 1024, 2048, 4096)}  # rows; computed tokens
GPU_SIZES = {"trl": (8, 32), "colever": (8192, 32768)}


def main() -> None:
    options = _options()
    if options.device != "cpu":
        _on_gpu(options)
        return
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
    shapes.add_options(parser, "1m")
    parser.add_argument("--lengths", nargs="*", default=["180/30"], help="prompt/completion tokens, on a GPU")
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--sizes", action="store_true", help="time and memory at every size of a pass")
    parser.add_argument("--memory", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=4096, help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(name: str, options: argparse.Namespace) -> dict[str, float]:
    rows = _rows(name)
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
        gap = _gap(Model(), rows, Path(folder) / "gap")
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
    model = Model().make()
    floor = floors.Floor(3 * floors.least_flops(model, calls), floors.attainable(model, range(1, _cores() + 1)))
    print(f"  {floor}")
    for peer in PEERS:
        print(f"  {peer:8} {work[peer] / 1e9:.1f} GFLOP counted; {floor.near(median[peer])}")


def _print_sizes(name: str, options: argparse.Namespace) -> None:
    """Milliseconds and MiB of both peers at every size of a pass, on one thread."""
    rows = _rows(name)
    with tempfile.TemporaryDirectory() as folder:
        file = _write_rows(rows, Path(folder))
        for peer in PEERS:
            for size in SIZES[peer]:
                _, run = BUILD[peer](Model(), rows, size, Path(folder) / f"{peer}-{size}")
                run()
                fastest = min(_timed(run, 1) for _ in range(options.repeats))
                memory = _memory(peer, file, size)["update"]
                unit = "rows" if peer == "trl" else "tokens"
                print(f"{name} {peer:8} {size:5} {unit:6} {fastest * 1e3:8.0f} ms {memory:8.0f} MiB", flush=True)


def _rows(name: str) -> list[Any]:
    lengths = WORKLOADS[name]
    return task_rows(name) if lengths is None else random_rows(*lengths, Model().vocabulary)


def _write_rows(rows: list[Any], folder: Path) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps([[r.prompt_ids, r.completion_ids, r.advantage] for r in rows]))
    return file


# --- measuring -----------------------------------------------------------------------------------


def _best(
    peer: str, rows: list[Any], folder: Path, threads: list[int] | None, sizes: Sequence[int]
) -> tuple[Callable[[], None], int, int]:
    """The peer's update with its fastest number of threads and size of a pass."""
    tried = []
    for size in sizes:
        _, run = BUILD[peer](Model(), rows, size, folder)
        run()
        for count in threads or range(1, _cores() + 1):
            tried.append((min(_timed(run, count) for _ in range(2)), count, size, run))
    _, count, size, run = min(tried, key=lambda t: t[0])
    return run, count, size


def _on_gpu(options: argparse.Namespace) -> None:
    """Both peers at every size of a pass, and the JSON line of the fastest."""
    model = Model(options.shape, options.dtype, options.device)
    print(f"{options.shape}, {options.dtype}, {shapes.hardware(options.device)}")
    line: dict[str, float] = {}
    for text in options.lengths:
        rows = random_rows(*shapes.lengths(text), model.vocabulary)
        calls = [(r.prompt_ids, len(r.completion_ids)) for r in rows]
        with torch.device("meta"):
            floor = 3 * floors.least_flops(Model(options.shape, device="meta").make(), calls)
        best = {peer: _fastest_pass(peer, model, rows, text, floor, options.repeats) for peer in PEERS}
        line[f"trl_ms {text}"], line[f"colever_ms {text}"] = (round(1e3 * best[p], 1) for p in PEERS)
        line[f"speedup {text}"] = round(best["trl"] / best["colever"], 2)
    print(json.dumps(line))


def _fastest_pass(peer: str, model: Model, rows: list[Any], name: str, floor: float, repeats: int) -> float:
    """Seconds of an update at the peer's fastest size of a pass; each is printed."""
    taken = []
    for size in GPU_SIZES[peer]:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            with tempfile.TemporaryDirectory() as folder:
                seconds, added, whole = _run_on_gpu(peer, model, rows, size, Path(folder), repeats)
        except (torch.OutOfMemoryError, LeverError):  # ours names the setting
            print(f"{name} {peer:8} {size:6}: out of memory", flush=True)
            continue
        taken.append(seconds)
        trained = sum(len(r.completion_ids) for r in rows)
        print(
            f"{name} {peer:8} {size:6} {'rows' if peer == 'trl' else 'tokens'} per pass: {1e3 * seconds:8.1f} ms,"
            f" {trained / seconds:8.0f} trained tokens/s, update {added:.2f} GiB, whole {whole:.2f} GiB,"
            f" useful {floor / seconds / 1e12:.1f} TFLOP/s",
            flush=True,
        )
    return min(taken, default=float("nan"))


def _run_on_gpu(
    peer: str, model: Model, rows: list[Any], size: int, folder: Path, repeats: int
) -> tuple[float, float, float]:
    """Median seconds of an update, GiB that it adds, GiB in all."""
    _, run = BUILD[peer](model, rows, size, folder)
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(floors.seconds(run) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated()
    return seconds, (peak - before) / 2**30, peak / 2**30


def _cores() -> int:
    return os.cpu_count() or 1


def _timed(run: Callable[[], None], threads: int) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _gap(model: Model, rows: list[Any], folder: Path) -> float:
    """Greatest difference between the two layouts' log-probabilities of any completion token."""
    trainer, _ = BUILD["colever"](model, rows, 4096, folder)
    stock, _ = BUILD["trl"](model, rows, len(rows), folder)
    inputs = padded(rows, model.device)
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
    torch.set_num_threads(1)
    rows = [row(tuple(p)[:1], i, p, c, a) for i, (p, c, a) in enumerate(json.loads(options.rows.read_text()))]
    with tempfile.TemporaryDirectory() as folder:
        _, tiny = BUILD[options.memory](Model(), rows[:2], 2, Path(folder) / "tiny")
        tiny()  # lazy imports, kernels and the optimizer's state are not the update's own
        _, run = BUILD[options.memory](Model(), rows, options.size, Path(folder))
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
