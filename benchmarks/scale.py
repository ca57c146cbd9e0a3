"""What a sweep on a large model takes: rollouts, tokens, FLOPs, GPU-hours, dollars, and what sharing saves of it.

Arithmetic, not a measurement. The reference is mmGRPO (arXiv 2508.04660): a pull of the weight lever of 750 updates ×
4 examples × 12 rollouts on an 8 B model took 37 H100-hours on average, a pull of MIPROv2 1.4. Hours of a sweep are
pulls × these; FLOPs are counted as Colever's ledger counts them, from a program's calls and lengths, and say how much
of those hours shared prefixes could save at most.

    python benchmarks/scale.py
    python benchmarks/scale.py --calls 1 --prompt 1200 --completion 60 --seeds 3 --price 2.5

The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from colever.engines.generation import ModelShape
from colever.engines.prefix_layout import Work, branch_work, row_work
from colever.engines.prefix_tree import Group, PrefixTree, Segment

QWEN3_8B = ModelShape(layers=36, body=6_945_767_424, head=151_936 * 4096, attention=32 * 128)
UPDATES, EXAMPLES, GROUP = 750, 4, 12  # mmGRPO's pull
WEIGHT_HOURS, PROMPT_HOURS = 37.0, 1.4  # H100-hours of a pull, its table
PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 (SXM), its data sheet
LORA_BACKWARD = 1.0  # forward passes: no gradients of the frozen weights below the adapter


@dataclass(frozen=True)
class Program:
    """Calls of a rollout, and tokens of each."""

    calls: int
    prompt: int
    completion: int
    shared: int  # of the prompt: instruction and demos, the same for all examples


def main() -> None:
    options = _options()
    program = Program(options.calls, options.prompt, options.completion, options.shared)
    pull = _pull(program)
    _print_pull(program, pull)
    schedules = {
        "4 trials (default)": ("p", "w", "p,w", "w,p"),
        "6 trials": ("p", "w", "p,w", "w,p", "p,w,p", "w,p,w"),
        "14: all of up to 3 rounds": [",".join(s) for n in (1, 2, 3) for s in itertools.product("pw", repeat=n)],
    }
    print(f"\n{'':28}{'pulls':>11}{'H100-hours':>22}{'dollars':>10}")
    print(f"{'sweep':28}{'alone':>6}{'once':>5}{'alone':>12}{'once':>10}{'once':>10}{'saved':>8}")
    saved = {name: _print_sweep(name, some, options) for name, some in schedules.items()}
    print(json.dumps({
        "rollouts_of_a_pull": pull["rollouts"],
        "utilisation_implied": round(pull["plain"] / (WEIGHT_HOURS * 3600 * PEAK), 3),
        "flops_saved_by_shared_prefixes": round(1 - pull["shared"] / pull["plain"], 3),
        "hours_saved_by_shared_rounds": {name: round(value, 3) for name, value in saved.items()},
    }))  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=3, help="calls of a rollout (default 3)")
    parser.add_argument("--prompt", type=int, default=900, help="tokens of a call's prompt (default 900)")
    parser.add_argument("--shared", type=int, default=500, help="of them the same for all examples (default 500)")
    parser.add_argument("--completion", type=int, default=180, help="tokens of an answer (default 180)")
    parser.add_argument(
        "--seeds", type=int, default=1, help="training seeds (default 1; an interval over seeds takes 3)"
    )
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU-hour (default 3)")
    options = parser.parse_args()
    if not 0 < options.shared < options.prompt - 1 or min(options.calls, options.completion, options.seeds) < 1:
        parser.error("accepted: --shared above 0 and below --prompt - 1; --calls, --completion and --seeds from 1")
    return options


def _pull(program: Program) -> dict[str, float]:
    """Rollouts, tokens and FLOPs of a weight pull: each row with its own prompt, and every prefix computed once."""
    rows = EXAMPLES * GROUP
    plain = shared = 0.0
    # Sampling: prefill and decoding. A server with a prefix cache shares too; the plain peer here does not.
    ends = program.completion - 1
    alone = rows * (_causal(program.prompt + ends))
    once = EXAMPLES * _causal(program.prompt) + rows * (_causal(program.prompt + ends) - _causal(program.prompt))
    once -= (EXAMPLES - 1) * _causal(program.shared)
    fresh = EXAMPLES * program.prompt - (EXAMPLES - 1) * program.shared
    plain += QWEN3_8B.flops(rows * (program.prompt + ends), alone, rows * program.completion)
    shared += QWEN3_8B.flops(fresh + rows * ends, once, rows * program.completion)
    sampled = {"plain": plain, "shared": shared}
    # Training: forward and backward over the same rows, and a forward pass of the reference for the KL term.
    passes = 1 + LORA_BACKWARD + 1
    tree = _tree(program)
    plain += passes * _flops(row_work(tree.groups, whole_head=False))
    shared += passes * _flops(branch_work(tree))
    each = UPDATES * program.calls
    return {
        "rollouts": UPDATES * rows,
        "calls": each * rows,
        "prompt_tokens": each * rows * program.prompt,
        "completion_tokens": each * rows * program.completion,
        "sampled_plain": each * sampled["plain"],
        "sampled_shared": each * sampled["shared"],
        "plain": each * plain,
        "shared": each * shared,
    }


def _tree(program: Program) -> PrefixTree:
    """An update's rows of one call: what all examples share, then each example's own, then its answers."""
    own = [Segment(0, program.shared, program.prompt - 1, example * GROUP) for example in range(EXAMPLES)]
    groups = [
        Group(tuple(range(e * GROUP, (e + 1) * GROUP)), program.prompt, (program.completion,) * GROUP, 1 + e)
        for e in range(EXAMPLES)
    ]
    return PrefixTree((Segment(-1, 0, program.shared, 0), *own), tuple(groups))


def _print_pull(program: Program, pull: dict[str, float]) -> None:
    print(f"A weight pull of {UPDATES} updates × {EXAMPLES} examples × {GROUP} rollouts on 8 B weights, LoRA, KL term;")
    lengths = f"{program.prompt} + {program.completion} tokens each, {program.shared} of them shared"
    print(f"{program.calls} calls a rollout, {lengths}:")
    print(f"  rollouts {pull['rollouts']:,.0f}, calls {pull['calls']:,.0f}")
    print(
        f"  tokens   {pull['prompt_tokens'] / 1e6:,.0f} M of prompts, {pull['completion_tokens'] / 1e6:,.0f} M sampled"
    )
    print(f"  PFLOPs   {'':12}{'each row alone':>16}{'prefixes shared':>17}")
    train = {kind: pull[kind] - pull[f"sampled_{kind}"] for kind in ("plain", "shared")}
    print(f"           {'sampling':12}{pull['sampled_plain'] / 1e15:>16,.0f}{pull['sampled_shared'] / 1e15:>17,.0f}")
    print(f"           {'updates':12}{train['plain'] / 1e15:>16,.0f}{train['shared'] / 1e15:>17,.0f}")
    share = pull["plain"] / (WEIGHT_HOURS * 3600 * PEAK)
    print(f"  {WEIGHT_HOURS:g} H100-hours for the first of these columns would be {share:.1%} of an H100's peak.")


def _print_sweep(name: str, schedules: Sequence[str], options: argparse.Namespace) -> float:
    """One line; the share of GPU-hours that computing each round once saves."""
    apart = [letter for s in schedules for letter in s.split(",")]
    once = [prefix[-1] for prefix in dict.fromkeys(p for s in schedules for p in _prefixes(s))]
    alone, shared = (options.seeds * _hours(pulls) for pulls in (apart, once))
    print(
        f"{name:28}{len(apart) * options.seeds:>6}{len(once) * options.seeds:>5}{alone:>12.1f}{shared:>10.1f}"
        f"{shared * options.price:>10,.0f}{1 - shared / alone:>8.0%}"
    )
    return 1 - shared / alone


def _prefixes(schedule: str) -> list[str]:
    letters = schedule.split(",")
    return [",".join(letters[: i + 1]) for i in range(len(letters))]


def _hours(pulls: Iterable[str]) -> float:
    return sum(WEIGHT_HOURS if pull == "w" else PROMPT_HOURS for pull in pulls)


def _flops(work: Work) -> float:
    return QWEN3_8B.flops(work.tokens, work.pairs, work.heads)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


if __name__ == "__main__":
    main()
