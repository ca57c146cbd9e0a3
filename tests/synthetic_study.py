"""A made-up study in the shape of a real one: four arms, their rounds, their report. No model, no task.

The numbers are drawn from a seed so that tables, figures and MLflow views have something lifelike to show.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colever.reported import ArmRow, Cell, Estimate, Flips, PromptRound, StudyReport, Threshold
from colever.samples import SampledRollout, SampledStep
from colever.types import (
    Candidate,
    Cost,
    Evaluation,
    LeverName,
    PredictorPrompt,
    RoundRecord,
    TrialRecord,
    Weights,
    digest_of,
)

PREDICTORS = ("work", "check")
BASE = Candidate({name: PredictorPrompt("Solve the problem.") for name in PREDICTORS})
# (rubric score, gold) on dev after each prefix of a schedule
LEVELS = {
    "": (0.648, 0.621),
    "p": (0.762, 0.718),
    "w": (0.851, 0.836),
    "p,w": (0.948, 0.945),
    "w,p": (0.893, 0.879),
    "p,p": (0.770, 0.727),
    "p,w,p": (0.951, 0.949),
}


def evaluation(score: float, gold: float, *, split: str = "dev", count: int = 64, read: float = 53.0) -> Evaluation:
    """Per-example values whose means are ``score`` and ``gold`` to the nearest example."""
    right = round(gold * count)
    partial = (score * count - right) / max(1, count - right)
    golds = tuple(1.0 if i < right else 0.0 for i in range(count))
    scores = tuple(1.0 if g else min(max(partial, 0.0), 1.0) for g in golds)
    return Evaluation(
        split=split,
        example_ids=tuple(f"{split}-{i}" for i in range(count)),
        scores=scores,
        golds=golds,
        by_criterion={"answer": gold, "format": min(1.0, score + 0.05), "steps": max(0.0, 2 * score - gold)},
        completion_tokens={"work": 18 + 30 * score, "check": 9.0 + 2 * score},
        policy_failures=round((1 - score) * 4),
        cost=Cost(count, count * 53, count * 40, 0, count * 4.0e9, count * 0.02),
        prompt_tokens={"work": read, "check": 60.0},
        calls={"work": 2.0, "check": 1.0},
    )


def make_round(lever: LeverName, prefix: str, parent: Candidate, workdir: Path | None = None) -> RoundRecord:
    """The pull of ``lever`` after the schedule ``prefix`` ("" for the first round)."""
    after_prefix = ",".join(filter(None, (prefix, lever[0])))
    rng = random.Random(after_prefix)
    before, after = (evaluation(*LEVELS[key], read=180.0 if "p" in key else 53.0) for key in (prefix, after_prefix))
    settings: dict[str, object] = {"way": "choice", "candidates": 8, "demos": 4}
    metrics: dict[str, list[tuple[int, float]]] = {
        "train/screen": [(i, before.score + (after.score - before.score) * rng.random()) for i in range(8)]
    }
    cost = Cost(448, 30_000, 19_000, 0, 2.1e12, 31.0)
    if lever == "prompt":
        prompts = {
            n: PredictorPrompt(f"Work from left to right ({n}).", ({"q": "1 + 1", "a": "2"},)) for n in PREDICTORS
        }
        child = replace(parent, prompts=prompts)
    else:
        settings = {"way": "grpo", "updates": 40, "group_size": 8, "learning_rate": 3e-5}
        metrics = training_curves(rng, before.score, after.score)
        child = replace(parent, weights=weights_for(after_prefix, workdir))
        cost = Cost(5120, 340_000, 230_000, 410_000, 9.4e13, 188.0)
    return RoundRecord(
        key=digest_of([after_prefix, settings]),
        lever=lever,
        settings=settings,
        seed=0,
        parent=parent,
        child=child,
        before=before,
        after=after,
        accepted=after.score > before.score,
        cost=cost,
        metrics=metrics,
        notes={"constant_groups": 0.21} if lever == "weights" else prompt_notes(before.score, after.score),
    )


def prompt_notes(parent: float, dev: float) -> dict[str, object]:
    """Of a round whose child did 8 points better on the train examples that chose it."""
    return {
        "way": "fewshot",
        "chosen": "4 demos, labelled",
        "tried": [{"what": "as it was", "screen": parent, "final": None}],
        "selected": {"parent": parent, "child": dev + 0.08, "examples": 96},
        "headroom": {
            "verdict": "go", "gain": 0.03, "low": -0.01, "high": 0.07, "candidates": 14, "examples": 32,
            "rollouts": 448,
        },
        "calls": {"rollouts": 900, "repeated": 120, "proposer_calls": 0},
    }  # fmt: skip


def weights_for(name: str, workdir: Path | None) -> Weights:
    if workdir is None:
        return Weights("full", None, digest_of(name))
    folder = workdir / digest_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(name.encode() * 1000)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return Weights("full", str(folder), digest_of(name))


def training_curves(
    rng: random.Random, start: float, end: float, updates: int = 40
) -> dict[str, list[tuple[int, float]]]:
    def climb(i: int) -> float:
        return start - 0.06 + (end - start) * (1 - math.exp(-3 * i / updates)) + rng.gauss(0, 0.012)

    return {
        "reward": [(i, climb(i)) for i in range(1, updates + 1)],
        "entropy": [(i, 0.4 - 0.006 * i + rng.gauss(0, 0.01)) for i in range(1, updates + 1)],
        "constant_share": [(i, min(1.0, 0.15 + 0.3 * i / updates + rng.gauss(0, 0.03))) for i in range(1, updates + 1)],
        "completion_tokens/work": [(i, 24 + 8 * i / updates + rng.gauss(0, 0.5)) for i in range(1, updates + 1)],
        "completion_tokens/check": [(i, 11 + rng.gauss(0, 0.3)) for i in range(1, updates + 1)],
        "grad_norm": [(i, 0.8 + rng.gauss(0, 0.1)) for i in range(1, updates + 1)],
    }


def make_trial(number: int, schedule: str, workdir: Path | None = None) -> TrialRecord:
    candidate, prefix, rounds = BASE, "", []
    for letter in schedule.split(","):
        record = make_round("prompt" if letter == "p" else "weights", prefix, candidate, workdir)
        rounds.append(record)
        candidate, prefix = record.kept, ",".join(filter(None, (prefix, letter)))
    return TrialRecord(
        number=number,
        schedule=schedule,
        settings={
            "schedule": schedule,
            "candidates": 8,
            "demos": 4,
            "updates": 40,
            "group_size": 8,
            "learning_rate": 3e-5,
        },
        state="complete",
        rounds=tuple(rounds),
        dev=rounds[-1].dev,
        candidate=candidate,
        cost=sum((r.cost for r in rounds), Cost()),
    )


def make_trials(workdir: Path | None = None, schedules: Sequence[str] = ("p", "w", "p,w", "w,p")) -> list[TrialRecord]:
    return [make_trial(number, schedule, workdir) for number, schedule in enumerate(schedules)]


def around(value: float, half: float = 0.021) -> Estimate:
    low, high = value - half, value + half
    return Estimate(value, low, high, resolved=not low <= 0 <= high)


def make_cell(name: str, schedule: str, score: float, gold: float, dev: float) -> Cell:
    measured = evaluation(score, gold, split="test", count=512, read=180.0 if "p" in schedule else 53.0)
    return Cell(
        name,
        around(score),
        around(gold),
        schedule,
        dev,
        measured.completion_tokens,
        measured.by_criterion,
        512,
        measured.prompt_tokens,
        measured.calls,
    )


def make_flips() -> Flips:
    """Base to winner on 512 examples, as far as 62.1 and 94.3 % gold allow."""
    return Flips(512, tuple(f"test-{i}" for i in range(318, 485)), ("test-7", "test-40"), 3.8e-47)


def make_report(trials: Sequence[TrialRecord] | None = None) -> StudyReport:
    """The finished report of the four arms; ``both`` and the winner is ``p,w`` (the last trial of fewer than three)."""
    trials = trials if trials is not None else make_trials()
    winner = trials[2] if len(trials) > 2 else trials[-1]
    table = {
        "base": make_cell("base", "", 0.651, 0.621, LEVELS[""][1]),
        "prompt": make_cell("prompt", "p", 0.755, 0.711, LEVELS["p"][1]),
        "weights": make_cell("weights", "w", 0.842, 0.826, LEVELS["w"][1]),
        "both": make_cell("both", "p,w", 0.946, 0.943, LEVELS["p,w"][1]),
    }
    parts = {
        "p*,w*": table["both"],
        "p*,w0": make_cell("p*,w0", "p,w", 0.755, 0.711, 0.718),
        "p0,w*": make_cell("p0,w*", "p,w", 0.803, 0.781, 0.79),
    }
    return StudyReport(
        study="arithmetic-1",
        task="arithmetic",
        model="seed",
        target=0.9,
        finished=True,
        has_gold=True,
        table=table,
        parts=parts,
        effects={
            "prompt": Estimate(0.1035, 0.081, 0.126),
            "weights": Estimate(0.2185, 0.192, 0.245),
            "interaction": Estimate(0.027, -0.012, 0.066, resolved=False),
            "order": Estimate(0.062, 0.038, 0.087),
            "gain": Estimate(0.322, 0.291, 0.353),
            "prompt_score": Estimate(0.104, 0.085, 0.123),
            "weights_score": Estimate(0.191, 0.168, 0.214),
            "interaction_score": Estimate(-0.101, -0.213, 0.103, resolved=False),
            "order_score": Estimate(0.055, 0.035, 0.076),
            "gain_score": Estimate(0.295, 0.27, 0.32),
        },
        thresholds=[
            Threshold(0.7, "prompt", 1, winner.rounds[0].cost),
            Threshold(0.8, "weights", 2, winner.cost),
            Threshold(0.9, "weights", 2, winner.cost),
        ],
        arms=[arm_of(t) for t in trials],
        path=winner.rounds,
        winner=winner.schedule,
        cost=sum((r.cost for r in {r.key: r for t in trials for r in t.rounds}.values()), Cost()),
        dev_gain=0.324,
        test_gain=0.322,
        watched={
            "longer chains": {
                "base": make_cell("base", "", 0.41, 0.334, 0.6),
                "both": make_cell("both", "p,w", 0.7, 0.652, 0.9),
            }
        },
        notes=["w* was learned under p*: its part without p* is not what training from p0 would have given."],
        flips=make_flips(),
        prompt_rounds=rounds_of(trials),
    )


def rounds_of(trials: Sequence[TrialRecord]) -> list[PromptRound]:
    """Every prompt round once, as a report has them."""
    named = {r.key: (f"{t.number}.{i}", r) for t in reversed(trials) for i, r in enumerate(t.rounds, 1)}
    rounds = sorted(((n, r) for n, r in named.values() if r.lever == "prompt"), key=lambda pair: pair[0])
    return [PromptRound(name, r, around(r.after.score - r.before.score)) for name, r in rounds]


def make_rollout(name: str, total: float | None, said: str) -> SampledRollout:
    """A kept rollout of two calls that ends in ``said``."""
    prompt = f"<|im_start|>user\n{said} 3 + 4 * 2<|im_end|>"
    steps = tuple(
        SampledStep(predictor, prompt, said, {"problem": "3 + 4 * 2"}, {"answer": said}, False, "stop", 53, 12)
        for predictor in PREDICTORS
    )
    scores = {} if total is None else {"answer": total, "format": 1.0}
    gold = None if total is None else float(total == 1)
    return SampledRollout(
        name, {"problem": "3 + 4 * 2"}, {"answer": "11"}, {"answer": said}, steps, total, gold, scores, f"said {said}"
    )


def arm_of(trial: TrialRecord) -> ArmRow:
    assert trial.dev is not None
    curve, spent = [(Cost(), trial.rounds[0].before.gold or 0.0)], Cost()
    for record in trial.rounds:
        spent = spent + record.cost
        curve.append((spent, record.dev.gold or 0.0))
    gold = trial.dev.gold or 0.0
    return ArmRow(trial.schedule, gold, gold - 0.004, trial.cost, trial.number, trial.dev.score, gold, tuple(curve))


def unfinished_report() -> StudyReport:
    """After two trials: prompts and weights alone, nothing on test yet, no winner of both."""
    trials = make_trials()[:2]
    empty = {name: Cell(name, None, None) for name in ("base", "prompt", "weights", "both")}
    table = {
        **empty,
        "prompt": replace(empty["prompt"], schedule="p", dev=LEVELS["p"][1]),
        "weights": replace(empty["weights"], schedule="w", dev=LEVELS["w"][1]),
    }
    return replace(
        make_report(make_trials()),
        finished=False,
        table=table,
        parts={},
        effects={},
        arms=[replace(arm_of(t), test=None) for t in trials],
        path=trials[1].rounds,
        winner="w",
        thresholds=[
            Threshold(0.7, "weights", 1, trials[1].cost),
            Threshold(0.8, "weights", 1, trials[1].cost),
            Threshold(0.9, None, None, None),
        ],
        dev_gain=0.203,
        test_gain=None,
        watched={},
        notes=[],
        flips=None,
    )


def no_gold_report() -> StudyReport:
    """A finished study of a task without gold whose search found only a prompt."""
    report = make_report()
    table = {
        "base": replace(report.table["base"], gold=None),
        "prompt": replace(report.table["prompt"], gold=None),
        "weights": Cell("weights", None, None),
        "both": Cell("both", None, None),
    }
    return replace(
        report, has_gold=False, table=table, parts={}, watched={}, flips=None, winner="p", path=report.path[:1],
        effects={"prompt": Estimate(0.104, 0.082, 0.126)}, arms=[replace(report.arms[0], dev_gold=None)],
    )  # fmt: skip
