"""Does searching the schedule pay?  Against fixed orders and DSPy's ``BetterTogether``, the search's own cost included.

Per task and training seed, on one engine and one seed model, all scored alike on test (gold, greedy):

- the six orders p, w, p,w, w,p, p,w,p, w,p,w, each alone and charged in full;
- *blindly*: somebody who takes one of the six; the mean over them;
- *in hindsight*: the one that came out best on test over all seeds. Nobody can know it before: an oracle;
- *the six, by dev*: all six, the best on dev taken; shared rounds are paid once;
- the adaptive schedule;
- *searched*: a study with the six, adaptive and ``--searched`` further trials; everything on its ledger is paid;
- ``dspy.BetterTogether`` with its default strategy p -> w -> p, which chooses among its steps on the same dev split:
  with our weight lever (as many updates as one of our weight rounds) and with DSPy's ``BootstrapFinetune``. Its random
  search over demos has ``--candidates`` random sets, so that its prompt step is about as many rollouts as ours.

Cost is counted FLOPs of sampling and training, dev included, test not; rollouts are runs of the program; minutes are
by the clock. Then the same at equal cost: each method is cut where it passes a cap, and what was best on dev by then
is read on test. Intervals are 95 % over seeds and test examples (``docs/statistics.md``), paired for differences.

    OMP_NUM_THREADS=1 python benchmarks/search_comparison.py                  # hours: three tasks, three seeds
    python benchmarks/search_comparison.py --tasks routing --seeds 0 --searched 1 --set weights.updates=4
    python benchmarks/search_comparison.py --report                           # of what is done so far

Everything lies in ``--home``: rounds and evaluations under their keys, runs of BetterTogether as files. Killed and
started again it goes on. The last line is JSON: {task: {method: {seeds, tflops, rollouts, minutes, test, less, at}}}.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded; TRL would send telemetry

from search_comparison_methods import ORDERS, Paths, paths
from search_comparison_table import Results, as_json, table
from search_comparison_together import KINDS, Asked, better_together

from colever import console
from colever.config import ADAPTIVE, SweepConfig
from colever.engines.lm import open_engine
from colever.engines.transformers import TransformersEngine
from colever.loading import load_config, parse_pairs
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.statistics import Values
from colever.optimizers.store import EvaluationStore
from colever.optimizers.study import StudyFolder
from colever.optimizers.sweep import sweep
from colever.tasks.load import BUNDLED, load_task
from colever.tasks.task import Task
from colever.types import Candidate


def main() -> None:
    options = arguments()
    console.silence()
    if not options.report:
        for config in configs(options):
            run(config, options)
    found = {}
    for name in options.tasks:
        results = read(name, options)
        if results is not None:
            print("\n".join(table(results)), flush=True)
            found[name] = as_json(results)
    print(json.dumps(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(BUNDLED), default=list(BUNDLED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--searched", type=int, default=3, help="trials that the sampler draws, after the seven arms")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="BetterTogether's w")
    parser.add_argument("--candidates", type=int, default=4, help="random demo sets of BetterTogether's p")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="as `colever sweep --set`")
    parser.add_argument("--home", type=Path, default=Path("mlruns/search_comparison"))
    parser.add_argument("--report", action="store_true", help="run nothing: the tables of what is done")
    return parser.parse_args()


def configs(options: argparse.Namespace) -> Iterator[SweepConfig]:
    """Seed by seed, so that a run that is cut has one seed of each task first."""
    for seed in options.seeds:
        for task in options.tasks:
            yield config_of(task, seed, options)


def config_of(task: str, seed: int, options: argparse.Namespace) -> SweepConfig:
    arms = [*ORDERS, ADAPTIVE]
    flags = {"task": task, "seed": seed, "schedules": arms, "trials": len(arms) + options.searched}
    return load_config(flags=flags, overrides=parse_pairs(options.set or [], "--set"))


def run(config: SweepConfig, options: argparse.Namespace) -> None:
    """The study and the runs of BetterTogether of one task and seed, as far as they are not done."""
    task, engine = load_task(config.task), open_engine(config.model)
    if not done(config, options.home):
        with console.progress() as drawn:
            report = sweep(config, task, engine, options.home, progress=drawn)
        for failure in report.failures:
            print(f"{config.task} seed {config.seed}: {failure}", flush=True)
    for kind in options.kinds:
        ran = better_together(asked(config, kind, task, engine, options))
        failed = ", a step failed" if ran.failed else ""
        print(f"{config.task} seed {config.seed} BetterTogether {kind}: {ran.scores}{failed}", flush=True)


def done(config: SweepConfig, home: Path) -> bool:
    state = StudyFolder(home, config.study_name).state()
    return state is not None and state.finished and len(state.trials) >= config.trials


def asked(config: SweepConfig, kind: str, task: Task, engine: TransformersEngine, options: argparse.Namespace) -> Asked:
    return Asked(
        task, engine, kind, config.seed, config.weights, options.candidates, options.home.resolve() / "together"
    )


def read(name: str, options: argparse.Namespace) -> Results | None:
    """The methods of one task in every seed whose study is done, and of BetterTogether what is there."""
    task, found, evaluators = load_task(name), dict[int, Paths](), dict[int, Evaluator]()
    for seed in options.seeds:
        config = config_of(name, seed, options)
        folder = StudyFolder(options.home, config.study_name)
        state = folder.state()
        if state is None or not done(config, options.home):
            continue
        engine = open_engine(config.model)
        evaluators[seed] = Evaluator.of(task, engine, EvaluationStore(options.home), config.seed)
        ran = {kind: asked(config, kind, task, engine, options).stored() for kind in options.kinds}
        runs = {kind: run for kind, run in ran.items() if run is not None}
        found[seed] = paths(state.base, evaluators[seed](state.base), folder.trials(state), runs)
    lists = dict[tuple[int, str], Values]()  # arms that are one candidate share their list: their difference is 0

    def values(seed: int, candidate: Candidate) -> Values:
        key = seed, candidate.digest
        if key not in lists:
            made = evaluators[seed](candidate, "test")
            lists[key] = made.golds if task.gold is not None else made.scores
        return lists[key]

    return Results(name, found, values) if found else None


if __name__ == "__main__":
    main()
