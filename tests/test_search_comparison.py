"""The benchmark of the search: shared rounds are paid once, a cap cuts, and BetterTogether is charged all it took."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from synthetic_study import BASE, evaluation

from colever.config import WeightSettings
from colever.engines.lm import open_engine
from colever.optimizers.evaluate import evaluate
from colever.tasks.load import load_task
from colever.types import Candidate, Cost, RoundRecord, TrialRecord, Weights

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
START = evaluation(0.5, 0.5)
TESTS = {"": 0.5, "p": 0.5, "w": 0.75, "p,w": 1.0, "w,p": 0.75, "p,w,p": 1.0, "w,p,w": 0.75, "w,w": 0.875}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def candidate(prefix: str) -> Candidate:
    return replace(BASE, weights=Weights("full", None, prefix)) if prefix else BASE


def trial(number: int, schedule: str, said: str = "") -> TrialRecord:
    """A prompt round costs 1 TFLOP, a weight round 10; dev is what test is, less 0.1 after two rounds."""
    rounds, parent = [], ""
    for letter in schedule.split(","):
        child = ",".join(filter(None, (parent, letter)))
        before, after = (evaluation(TESTS[p] - 0.1 * (p.count(",") == 1), 0.5) for p in (parent, child))
        rounds.append(
            RoundRecord(
                key=child, lever="prompt" if letter == "p" else "weights", settings={}, seed=0,
                parent=candidate(parent), child=candidate(child), before=before, after=after, accepted=True,
                cost=Cost(rollouts=100, flops=1e12 if letter == "p" else 1e13),
            )
        )  # fmt: skip
        parent = child
    cost = sum((r.cost for r in rounds), Cost())
    last = rounds[-1]
    return TrialRecord(number, said or schedule, {}, "complete", tuple(rounds), last.dev, last.kept, cost)


@dataclass(frozen=True)
class Ran:
    candidate: Candidate
    dev: float
    cost: Cost


def found():
    from search_comparison_methods import ORDERS, paths

    trials = [trial(i, order) for i, order in enumerate(ORDERS)] + [trial(6, "w,w", "adaptive"), trial(7, "w,w")]
    return paths(BASE, START, trials, {"grpo": Ran(candidate("w"), 0.7, Cost(rollouts=50, flops=12e12))})


def test_a_round_that_a_path_has_had_costs_it_nothing():
    made = found()
    base = START.cost.flops
    assert made["p,w,p"][-1].cost.flops == base + 12e12
    assert made["the six, by dev"][-1].cost.flops == base + 33e12  # six rounds in the place of twelve
    assert made["adaptive"][-1].cost.flops == base + 20e12
    assert made["searched"][-1].cost.flops == base + 43e12  # and the second w of w,w, once
    assert made["base"][-1].cost == Cost()


def test_a_cap_cuts_and_the_best_on_dev_within_it_counts():
    from search_comparison_methods import at

    path = found()["searched"]
    assert at(path, 0.0) is None  # base on dev is paid too
    cut = at(path, START.cost.flops + 12e12)  # p and w are done, the second w of p,w is not
    assert cut.candidate == candidate("w")
    assert cut.cost.flops == START.cost.flops + 11e12
    assert at(path).candidate == candidate("p,w,p")  # p,w lost on dev
    assert at(path).cost == path[-1].cost  # what came after it is paid


def test_rows_are_over_seeds_and_what_is_one_candidate_differs_by_nothing():
    from search_comparison_table import BLIND, ORACLE, Results, as_json, table

    lists: dict[tuple[int, str], list[float]] = {}

    def read(seed: int, c: Candidate) -> list[float]:
        share = TESTS["" if c == BASE else c.weights.digest]
        return lists.setdefault((seed, c.digest), [float(i < 16 * share) for i in range(16)])

    paths = {seed: dict(found()) for seed in (0, 1)}
    del paths[1]["grpo"]
    results = Results("made up", paths, read)
    assert results.oracle == "p,w"  # as good as p,w,p, and cheaper
    row = results.row("searched")
    assert row.seeds == 2
    assert row.test.value == 1.0
    assert row.less[ORACLE].value == 0.0  # another candidate with the same answers: an interval all the same
    assert row.less[ORACLE].high > 0
    assert results.row("the six, by dev").less["searched"].high == 0.0  # the same candidate
    assert results.row(BLIND).test.value == pytest.approx((0.5 + 3 * 0.75 + 2 * 1.0) / 6)
    assert results.row("grpo").seeds == 1
    assert results.row("grpo").less[ORACLE].value == -0.25
    assert results.row("searched", 0.5).test.value == 0.5  # within 6 TFLOPs: p alone
    assert results.row("base", 0.5).seeds == 1  # seed 1 has no unit of cost
    assert results.row("w", 0.05).test.value == 0.5  # the round does not fit
    lines = table(results)
    assert any(line.startswith("| searched | 2 | 43.3 |") for line in lines)
    assert as_json(results)["searched"]["at"]["1"] == 75.0  # p and w, in the one seed that has a unit


@pytest.mark.parametrize("kind", ["grpo", pytest.param("finetune", marks=pytest.mark.slow)])
def test_better_together_is_charged_all_of_it_and_reads_as_a_candidate(kind, tmp_path):
    from search_comparison_together import Asked, better_together

    task = load_task("routing")
    task = replace(task, train=task.train[:24], dev=task.dev[:8])
    engine = open_engine("seed")
    weights = WeightSettings(updates=1, examples_per_update=4, group_size=4, warmup=0)
    asked = Asked(task, engine, kind, 0, weights, 0, tmp_path)
    before = engine.meter
    made = better_together(asked)
    spent = engine.meter - before
    assert not made.failed
    assert set(made.scores) == {"", "p", "p -> w", "p -> w -> p"}
    assert made.cost.flops == pytest.approx(spent.flops)
    assert (made.cost.trained_tokens, made.cost.completion_tokens) == (spent.trained_tokens, spent.completion_tokens)
    assert made.cost.trained_tokens > 0
    evaluations = 4 * 8 + 2 * 3 * 8  # BetterTogether's own, and three programs in each prompt step
    training = 16 if kind == "grpo" else 24
    assert made.cost.rollouts >= evaluations + training
    assert evaluate(made.candidate, task, engine, "dev").score == pytest.approx(made.dev, abs=1e-4)

    before = engine.meter
    assert better_together(asked) == made
    assert engine.meter == before  # read
    (asked.folder / "result.json").unlink()
    again = better_together(asked)  # its prompt steps are read, and charged as if they ran
    assert (again.scores, again.cost.rollouts) == (made.scores, made.cost.rollouts)
    assert again.cost.flops == pytest.approx(made.cost.flops, rel=0.05)  # DSPy's threads make other batches
    assert len(list(tmp_path.glob("routing-p-s0-*/*.json"))) == 2
