"""What the seed model can and can't do on the bundled tasks: the table of docs/seed-model.md.

On dev, per task: rubric score and gold under the plain instructions; each offered wording alone; demos alone; and
pass@1 and pass@8 at temperature 1. The last line is one JSON object.

    python benchmarks/seed_model.py [--model seed] [--limit 256]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from colever.engines.lm import engine_lm, open_engine
from colever.engines.transformers import TransformersEngine
from colever.pipelines.prompts import apply_prompts
from colever.pipelines.rollout import run_rollouts
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt, Rollout


def rollouts(
    engine: TransformersEngine,
    task: Task,
    candidate: Candidate,
    limit: int,
    split: str = "dev",
    samples: int = 1,
    temperature: float = 0.0,
) -> list[Rollout]:
    program = apply_prompts(task.program(), candidate.prompts)
    return run_rollouts(
        program,
        task.examples(split)[:limit],
        lm=engine_lm(engine),
        score=task.score,
        fail=task.fail,
        samples=samples,
        temperature=temperature,
        max_tokens=task.max_tokens,
        split=split,
    )


def means(found: list[Rollout]) -> dict[str, float]:
    scores = [r.score for r in found if r.score is not None]
    names = scores[0].by_criterion
    return {
        "score": sum(s.total for s in scores) / len(scores),
        "gold": sum(s.gold or 0 for s in scores) / len(scores),
        "failed": sum(r.failure == "policy" for r in found) / len(found),
        **{n: sum(s.by_criterion[n] for s in scores) / len(scores) for n in names},
    }


def passes(found: list[Rollout], k: int) -> float:
    by_example: dict[str, float] = {}
    for r in found:
        by_example[r.example_id] = max(by_example.get(r.example_id, 0.0), (r.score.gold or 0.0) if r.score else 0.0)
    return sum(by_example.values()) / len(by_example) if k > 1 else means(found)["gold"]


def demos_from(found: list[Rollout], task: Task, count: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """Demos per predictor out of the best rollouts on train; labelled ones where an example holds every field."""
    examples = dict(task.examples("train"))
    demos: dict[str, list[dict[str, Any]]] = {}
    for name, predictor in task.program().named_predictors():
        fields = list(predictor.signature.fields)
        rows = [{f: e[f] for f in fields} for e in examples.values() if all(f in e for f in fields)]
        demos[name] = rows[:count]
    return {k: tuple(v) for k, v in demos.items()}


def measure(engine: TransformersEngine, task: Task, limit: int) -> dict[str, Any]:
    base = task.base_candidate()
    rows: dict[str, Any] = {"plain": means(rollouts(engine, task, base, limit))}
    for predictor, wordings in task.instructions.items():
        for wording in wordings:
            prompts = {**base.prompts, predictor: PredictorPrompt(wording)}
            rows[f"{predictor}: {wording}"] = means(rollouts(engine, task, replace(base, prompts=prompts), limit))
    demos = demos_from([], task, 12)
    if any(demos.values()):
        prompts = {n: PredictorPrompt(p.instructions, demos[n]) for n, p in base.prompts.items()}
        rows["demos (labelled, 12)"] = means(rollouts(engine, task, replace(base, prompts=prompts), limit))
    sampled = rollouts(engine, task, base, min(limit, 128), samples=8, temperature=1.0)
    rows["sampled"] = {**means(sampled), "pass@1": passes(sampled, 1), "pass@8": passes(sampled, 8)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="seed")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--task", choices=list(BUNDLED), action="append")
    args = parser.parse_args()
    engine, result = open_engine(args.model), {}
    for name in args.task or BUNDLED:
        result[name] = measure(engine, load_task(name), args.limit)
        for row, values in result[name].items():
            print(f"{name:11}{row[:60]:62}" + "  ".join(f"{k} {100 * v:5.1f}" for k, v in values.items()), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
