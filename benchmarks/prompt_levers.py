"""Ways of pulling the prompt lever against the same DSPy optimizers used alone, on one engine.

    python benchmarks/prompt_levers.py [--tasks arithmetic lookup routing] [--ways fewshot knn] [--curves FILE.png]

*ours*: one pull of the way with its default settings. *alone*: the DSPy class with the same numbers of candidates and
demos on the same train examples, in DSPy's own loop on the same engine, at the number of threads that evaluates
fastest here (tried first). Both get the task's base prompts, and what they choose is read on test once, with the
task's own decoding. ``fewshot`` is BootstrapFewShotWithRandomSearch and ``knn`` KNNFewShot, which bootstraps anew at
every call: it is read on the first 128 test examples, and its cost there is told. ``instructions`` has no optimizer in
DSPy: its peer is the loop that a DSPy user writes, ``dspy.Evaluate`` over every wording. ``choice`` has none either:
DSPy's random search stands there. Seconds are those of the search; scores have 95 % intervals over test examples.
``--curves`` pulls every way at several sizes and draws score against rollouts. Ways that need a proposer are not here:
the proposers that tests use are scripted, and nothing about quality follows from them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShotWithRandomSearch, KNNFewShot

from colever.config import PromptSettings
from colever.engines.lm import engine_lm, open_engine
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import measure, metered
from colever.optimizers.lever import NullProgress
from colever.optimizers.prompt_lever import PromptLever, train_rows
from colever.optimizers.statistics import mean_estimate, paired_effect
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt

THREADS = (1, 8, 32, 96)
MANY = 10**6
KNN_TEST = 128  # test examples on which KNNFewShot is read: every call of it is nine rollouts, one after the other


class Counted:
    """The rubric as a DSPy metric; counts what it scores."""

    def __init__(self, task: Task) -> None:
        self.task, self.calls, self._lock = task, 0, threading.Lock()

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        with self._lock:
            self.calls += 1
        return self.task.rubric.score(example, prediction, ()).total


class CountedProgram:
    """Counts the calls of a task's programs; ``wrapped`` makes one."""

    def __init__(self, task: Task) -> None:
        self.task, self.calls, self._lock = task, 0, threading.Lock()

    def wrapped(self) -> dspy.Module:
        program, counter = self.task.program(), self
        original = type(program)

        def forward(self: dspy.Module, *args: Any, **kwargs: Any) -> dspy.Prediction:
            with counter._lock:
                counter.calls += 1
            return original.forward(self, *args, **kwargs)

        program.__class__ = type(original)(
            original.__name__, (original,), {"forward": forward, "__module__": original.__module__}
        )
        return program


def best_threads(task: Task, lm: dspy.LM) -> tuple[int, dict[int, float]]:
    """Of those tried, the number of threads at which DSPy's Evaluate is fastest on 96 examples."""
    rows = [example for _, example in task.examples("train")][:96]
    seconds: dict[int, float] = {}
    for threads in THREADS:
        evaluate = dspy.Evaluate(devset=rows, metric=Counted(task), num_threads=threads, max_errors=MANY)
        started = time.perf_counter()
        with quiet(), dspy.context(lm=lm):
            evaluate(task.program())
        seconds[threads] = time.perf_counter() - started
    return min(seconds, key=lambda t: seconds[t]), seconds


@contextlib.contextmanager
def quiet() -> Any:
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def ours(task: Task, engine: Any, way: str, seed: int, **settings: int) -> tuple[Candidate, dict[str, Any]]:
    """One pull as a study makes it."""
    budget = Budget()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        pull = PromptLever(PromptSettings(way=way, **settings)).improve(
            task.base_candidate(), task, engine, budget, seed, Path(folder), NullProgress()
        )
        seconds = time.perf_counter() - started
    asked = pull.notes["calls"]
    return pull.candidate, {
        "seconds": seconds,
        "calls": budget.spent.rollouts,
        "repeated": asked["repeated"],
        "train": pull.notes["selected"]["child"],
        "tflops": budget.spent.flops / 1e12,
    }


def alone_random_search(task: Task, engine: Any, seed: int, threads: int) -> tuple[Candidate, dict[str, Any]]:
    """DSPy's random search as its users run it, with as many candidates and demos."""
    settings, counter = PromptSettings(way="fewshot"), CountedProgram(task)
    rows = train_rows(settings, task, random.Random(seed))
    lm = engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens)
    started, before = time.perf_counter(), engine.meter
    with quiet(), dspy.context(lm=lm):
        best = BootstrapFewShotWithRandomSearch(
            metric=Counted(task),
            max_bootstrapped_demos=settings.demos,
            max_labeled_demos=settings.demos,
            num_candidate_programs=settings.candidates,
            num_threads=threads,
            max_errors=MANY,
            metric_threshold=settings.threshold,
        ).compile(counter.wrapped(), trainset=[e for _, e in rows.shown], valset=[e for _, e in rows.scored])
    seconds, spent = time.perf_counter() - started, engine.meter - before
    fields = {name: list(p.signature.fields) for name, p in best.named_predictors()}
    prompts = {
        name: PredictorPrompt(p.instructions, tuple({f: d[f] for f in fields[name] if f in d} for d in p.demos))
        for name, p in read_prompts(best).items()
    }
    found = {"seconds": seconds, "calls": counter.calls, "threads": threads, "tflops": spent.flops / 1e12}
    return Candidate(prompts), found


def alone_loop(task: Task, engine: Any, seed: int, threads: int) -> tuple[Candidate, dict[str, Any]]:
    """Every wording alone on the same examples with ``dspy.Evaluate``; the best of each, if together better."""
    rows = train_rows(PromptSettings(way="instructions"), task, random.Random(seed))
    lm, base = engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens), task.base_candidate()
    counter = CountedProgram(task)
    evaluate = dspy.Evaluate(
        devset=[e for _, e in rows.scored], metric=Counted(task), num_threads=threads, max_errors=MANY
    )

    def score(prompts: Any) -> float:
        return float(evaluate(apply_prompts(counter.wrapped(), prompts)).score)

    started, before, together = time.perf_counter(), engine.meter, dict(base.prompts)
    with quiet(), dspy.context(lm=lm):
        first = best = score(base.prompts)
        for name, texts in task.instructions.items():
            alone = {text: score({**base.prompts, name: PredictorPrompt(text)}) for text in texts}
            text = max(alone, key=lambda t: alone[t])
            if alone[text] > first:
                together[name] = PredictorPrompt(text)
        best = score(together)
    spent = engine.meter - before
    found = {"seconds": time.perf_counter() - started, "calls": counter.calls, "threads": threads}
    return (Candidate(together) if best > first else base), found | {"tflops": spent.flops / 1e12}


def alone_knn(task: Task, engine: Any, seed: int, threads: int) -> tuple[list[float], dict[str, Any]]:
    """DSPy's KNNFewShot: nothing is searched; every call bootstraps its neighbours. Its scores on test."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings, counter, metric = PromptSettings(way="knn"), CountedProgram(task), Counted(task)
    rows = train_rows(settings, task, random.Random(seed))
    shown = [e for _, e in rows.shown]
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
    words.fit([" | ".join(f"{k}: {v}" for k, v in e.inputs().items()) for e in shown])
    lm = engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens)
    test = [e for _, e in task.examples("test")][:KNN_TEST]
    with quiet(), dspy.context(lm=lm, max_errors=MANY):
        started = time.perf_counter()
        compiled = KNNFewShot(
            k=settings.demos,
            trainset=shown,
            vectorizer=lambda texts: words.transform(texts).toarray(),
            metric=metric,
            metric_threshold=settings.threshold,
            max_bootstrapped_demos=settings.demos,
            max_labeled_demos=settings.demos,
        ).compile(counter.wrapped())
        compiled_in = time.perf_counter() - started
        started, before = time.perf_counter(), engine.meter
        results = dspy.Evaluate(devset=test, metric=metric, num_threads=threads, max_errors=MANY)(compiled).results
    spent = engine.meter - before
    return [float(score) for *_, score in results], {
        "seconds": compiled_in,
        "test_seconds": time.perf_counter() - started,
        "calls": counter.calls,
        "threads": threads,
        "test_tflops": spent.flops / 1e12,
    }


def on_test(task: Task, engine: Any, candidate: Candidate) -> tuple[list[float], dict[str, float]]:
    """Scores on test, and what reading it took."""
    with metered(engine, len(task.test)) as meter:
        evaluation, _ = measure(candidate, task, engine, "test", seed=0)
    return [float(s or 0.0) for s in evaluation.scores], {
        "test_seconds": meter.cost.seconds,
        "test_tflops": meter.cost.flops / 1e12,
    }


def said(scores: list[float], found: dict[str, Any]) -> dict[str, Any]:
    estimate = mean_estimate(scores)
    assert estimate is not None
    return {"score": estimate.value, "low": estimate.low, "high": estimate.high, **found}


def compare(task: Task, engine: Any, way: str, seed: int, threads: int, peers: dict[str, Any]) -> dict[str, Any]:
    """One way and its peer on one task."""
    candidate, found = ours(task, engine, way, seed)
    scores, reading = on_test(task, engine, candidate)
    peer = way if way in ("knn", "instructions") else "fewshot"
    if peer not in peers:
        if peer == "knn":
            peers[peer] = alone_knn(task, engine, seed, threads)
        else:
            alone = alone_loop if peer == "instructions" else alone_random_search
            made, cost = alone(task, engine, seed, threads)
            read, took = on_test(task, engine, made)
            peers[peer] = read, cost | took
    theirs, cost = peers[peer]
    ahead = paired_effect([(1, scores[: len(theirs)]), (-1, theirs)])
    assert ahead is not None
    return {
        "ours": said(scores, found | reading),
        "alone": said(theirs, cost),
        "ahead": {"score": ahead.value, "low": ahead.low, "high": ahead.high},
    }


SIZES: dict[str, list[dict[str, int]]] = {
    "instructions": [{"screen": n, "examples": 3 * n} for n in (4, 12, 32)],
    "fewshot": [{"candidates": n, "examples": m} for n, m in ((2, 24), (4, 48), (12, 96))],
    "knn": [{"demos": n, "examples": m} for n, m in ((2, 24), (4, 48), (8, 96))],
    "choice": [{"candidates": n, "screen": m, "examples": 3 * m} for n, m in ((2, 8), (6, 16), (12, 32))],
}


def curves(task: Task, engine: Any, ways: list[str], seed: int) -> dict[str, list[dict[str, float]]]:
    """Per way, pulls of growing size: rollouts, and score on test with its interval."""
    found: dict[str, list[dict[str, float]]] = {}
    for way in ways:
        for settings in SIZES[way]:
            candidate, cost = ours(task, engine, way, seed, **settings)
            scores, _ = on_test(task, engine, candidate)
            row = said(scores, {"rollouts": cost["calls"], "seconds": cost["seconds"]})
            found.setdefault(way, []).append(row)
            print(f"  {task.name} {way:12} {settings}: {row['score']:.1%} after {row['rollouts']} rollouts")
            sys.stdout.flush()
    return found


def draw(table: dict[str, Any], path: Path) -> None:
    """Score on test against rollouts of the search, a panel for each task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(table), figsize=(4 * len(table), 3.4), sharey=True, squeeze=False)
    for axis, (name, found) in zip(axes[0], table.items(), strict=True):
        axis.axhline(100 * found["base"], color="0.6", linewidth=1, linestyle=":")
        for way, rows in found["ways"].items():
            x, y = [r["rollouts"] for r in rows], [100 * r["score"] for r in rows]
            low, high = ([100 * abs(r[k] - r["score"]) for r in rows] for k in ("low", "high"))
            axis.errorbar(x, y, yerr=[low, high], marker="o", markersize=3, capsize=2, linewidth=1.2, label=way)
        axis.set(title=name, xscale="log", xlabel="rollouts of the search")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("rubric score on test, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(BUNDLED), choices=list(BUNDLED))
    parser.add_argument("--ways", nargs="+", default=["fewshot", "knn", "instructions", "choice"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", type=Path, metavar="FILE", help="draw score against rollouts instead")
    given = parser.parse_args()
    engine, table = open_engine("seed"), dict[str, Any]()
    if given.curves is not None:
        for name in given.tasks:
            task = replace(load_task(name), gold=None)
            base, _ = on_test(task, engine, task.base_candidate())
            table[name] = {"base": sum(base) / len(base), "ways": curves(task, engine, given.ways, given.seed)}
        draw(table, given.curves)
        print(json.dumps(table))
        return
    for name in given.tasks:
        task = replace(load_task(name), gold=None)
        lm = engine_lm(engine, temperature=task.temperature, max_tokens=task.max_tokens)
        threads, tried = best_threads(task, lm)
        print(f"{name}: DSPy evaluates 96 examples in " + ", ".join(f"{s:.2f} s at {t}" for t, s in tried.items()))
        base, _ = on_test(task, engine, task.base_candidate())
        print(f"{name}: base {sum(base) / len(base):.1%} on test")
        peers: dict[str, Any] = {}
        table[name] = {}
        for way in given.ways:
            row = table[name][way] = compare(task, engine, way, given.seed, threads, peers)
            for who in ("ours", "alone"):
                r = row[who]
                print(
                    f"  {way:12} {who:6} {r['score']:6.1%} [{r['low']:.1%}, {r['high']:.1%}]  {r['seconds']:6.1f} s  "
                    f"{r['calls']:6} rollouts; test in {r['test_seconds']:.1f} s"
                )
            a = row["ahead"]
            print(f"  {way:12} ahead {100 * a['score']:+.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}] points")
            sys.stdout.flush()
    print(json.dumps(table))


if __name__ == "__main__":
    main()
