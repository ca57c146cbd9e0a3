"""What it saves that a round which several trials share is computed once.

Every schedule of up to three rounds (14 of them, 34 rounds in all) with fixed settings, as one study: the distinct
rounds run once each. What each would cost alone is the sum over its rounds; one schedule is run alone in an empty
home too, as a check that this sum is what it then costs.

    python benchmarks/shared_rounds.py                              # routing, defaults: about 8 minutes on two cores
    python benchmarks/shared_rounds.py --task arithmetic --set weights.updates=10

The last line is JSON: ``saved`` is the share of computed FLOPs, base and dev included, test not; ``saved_rollouts``
and ``saved_seconds`` likewise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from colever import console
from colever.engines.lm import open_engine
from colever.loading import load_config, parse_pairs
from colever.optimizers.study import StudyFolder
from colever.optimizers.sweep import sweep
from colever.reported import StudyReport
from colever.tasks.load import load_task
from colever.types import Cost

SCHEDULES = [",".join(s) for n in (1, 2, 3) for s in itertools.product("pw", repeat=n)]
ALONE = "p,w,p"


def main() -> None:
    options = _options()
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        report, rounds = _study(options, home / "shared", SCHEDULES)
        alone, _ = _study(options, home / "alone", [ALONE])
    apart = {arm.schedule: arm.cost for arm in report.arms}
    every, once = sum(apart.values(), Cost()), report.cost
    base = once - rounds["distinct"]
    print(f"{'':24}{'rounds':>8}{'rollouts':>10}{'TFLOPs':>9}{'seconds':>9}")
    _line("every schedule alone", rounds["in all"], every + base)
    _line("rounds shared", rounds["run"], once)
    _line(f"{ALONE} as charged", 3, apart[ALONE] + base)
    _line(f"{ALONE} alone, measured", 3, alone.cost)
    whole = every + base
    print(json.dumps({
        "saved": round(1 - once.flops / whole.flops, 3),
        "saved_rollouts": round(1 - once.rollouts / whole.rollouts, 3),
        "saved_seconds": round(1 - once.seconds / whole.seconds, 3),
        "rounds": rounds["run"],
        "rounds_alone": rounds["in all"],
    }))  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="routing")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="as `colever sweep --set`")
    return parser.parse_args()


def _study(options: argparse.Namespace, home: Path, schedules: list[str]) -> tuple[StudyReport, dict[str, Any]]:
    flags = {"task": options.task, "trials": len(schedules), "schedules": schedules, "search": {}}
    config = load_config(flags=flags, overrides=parse_pairs(options.set or [], "--set"))
    home.mkdir()
    with console.progress() as drawn:
        report = sweep(config, load_task(config.task), open_engine(config.model), home, progress=drawn)
    folder = StudyFolder(home, config.study_name)
    state = folder.state()
    assert state is not None
    rounds = [r for trial in folder.trials(state) for r in trial.rounds]
    distinct = {r.key: r.cost for r in rounds}
    return report, {"in all": len(rounds), "run": len(distinct), "distinct": sum(distinct.values(), Cost())}


def _line(name: str, rounds: int, cost: Cost) -> None:
    print(f"{name:24}{rounds:8}{cost.rollouts:10,}{cost.flops / 1e12:9.2f}{cost.seconds:9.0f}")


if __name__ == "__main__":
    main()
