"""A study's trials in Optuna's database: which are lined up, running, ended or lost, and which is next.

Knows Optuna and the study's workers; knows nothing of what a trial does. Every change is made while writing
(``workers``), so that two workers never take one trial and never propose for one number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from colever.config import SweepConfig
from colever.optimizers import space
from colever.optimizers.alternate import derive_seed
from colever.optimizers.evaluate import Grounds
from colever.optimizers.study import StudyFolder, TrialEntry
from colever.optimizers.trial_storage import open_storage
from colever.optimizers.workers import Workers
from colever.types import digest_of

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Trials:
    """The trials of one study, as this worker sees them."""

    def __init__(self, folder: StudyFolder, config: SweepConfig, key: str, workers: Workers) -> None:
        self.config, self.workers = config, workers
        self.study = _open_study(folder, key, "minimize" if config.objective == "cost" else "maximize")

    def all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def ended(self) -> list[FrozenTrial]:
        """Those with a result."""
        return [t for t in self.all() if t.state in ENDED]

    def failed(self) -> list[FrozenTrial]:
        return [t for t in self.all() if t.state is TrialState.FAIL]

    def given_up(self) -> list[FrozenTrial]:
        """Failed trials whose parameters had failed before, the first such of each: they count as ended."""
        failed: list[FrozenTrial] = []
        lost: dict[str, FrozenTrial] = {}
        for trial in self.failed():
            if any(trial.params == other.params for other in failed):
                lost.setdefault(str(sorted(trial.params.items())), trial)
            failed.append(trial)
        return list(lost.values())

    def to_retry(self) -> list[FrozenTrial]:
        """Trials that failed once and are not lined up again."""
        living = [_params(t) for t in self.all() if t.state is not TrialState.FAIL]
        living += [t.params for t in self.given_up()]
        found: list[FrozenTrial] = []
        for trial in self.failed():
            if trial.params and trial.params not in living:
                found.append(trial)
                living.append(trial.params)
        return found

    def done(self) -> int:
        """How many of ``config.trials`` need nothing more in this call."""
        return len(self.ended()) + len(self.given_up()) + len(self.to_retry())

    def line_up(self, *, again: bool) -> None:
        """Enqueue the first schedules, as many as there are trials; ``again``: and once more those that failed.

        One call of several workers tries a trial once, so only the first of them says ``again``.
        """
        known = [t.system_attrs.get("fixed_params") or t.params for t in self.all()]
        for schedule in self.config.schedules[: self.config.trials]:
            params = space.arm_params(self.config, schedule)
            if params not in known:
                self.study.enqueue_trial(params)
        for trial in self.to_retry() if again else ():
            self.study.enqueue_trial(trial.params)

    def claim(self) -> optuna.Trial | None:
        """This worker's next trial, or None where there is none to begin now.

        An interrupted one comes first, under its own number; then the next one lined up; then a proposal.
        """
        done, trials = self.done(), self.all()
        if done >= self.config.trials:
            return None
        running = [t for t in trials if t.state is TrialState.RUNNING]
        theirs = self.workers.elsewhere() if running else set()
        orphan = next((t for t in running if t.number not in theirs and self.workers.take(t.number)), None)
        if orphan is None and done + len(running) >= self.config.trials:
            return None
        number = orphan.number if orphan else len(trials)
        limit = shortfall if self.config.objective == "cost" else None
        self.study.sampler = sampler_of(self.config.sampler, derive_seed(self.config.seed, number), limit)
        trial = optuna.Trial(self.study, orphan._trial_id) if orphan else self.study.ask()
        return trial if self.workers.take(trial.number) else None  # a slow database's answer may be of another's

    def elsewhere(self) -> list[int]:
        """The trials that other workers run now."""
        theirs = self.workers.elsewhere()
        return [t.number for t in self.all() if t.state is TrialState.RUNNING and t.number in theirs]


def entry_of(trial: FrozenTrial) -> TrialEntry:
    """An ended trial as the study's file has it."""
    attributes = trial.user_attrs
    return TrialEntry(
        trial.number, attributes["schedule"], attributes["settings"], STATES[trial.state], tuple(attributes["rounds"])
    )


def study_key(config: SweepConfig, grounds: Grounds) -> str:
    """Of everything that a study's trials depend on, so that a study deleted and made otherwise starts anew."""
    left_out = {
        *config.resumable,
        "data",
        "rubric",
    }  # the task's digest holds what is in these files
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in left_out}
    return digest_of([settings, asdict(grounds)])


def sampler_of(
    kind: str, seed: int, limit: Callable[[FrozenTrial], tuple[float]] | None = None
) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by the trial's number: a restart proposes the same, and no two are alike.

    ``limit`` is what a trial may not have above 0.
    """
    with warnings.catch_warnings():  # of group=True and of limits, both tried with this version
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func leaves in Optuna 7
        if kind == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=8, deterministic_objective=False, constraints_func=limit
            )
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, n_startup_trials=5, seed=seed, constraints_func=limit
        )


def shortfall(trial: FrozenTrial) -> tuple[float]:
    """By how much a trial missed the target on dev: where cost is the objective, above 0 is as good as failed."""
    return (trial.user_attrs["short"],)


def _params(trial: FrozenTrial) -> Mapping[str, Any] | None:
    return trial.params or trial.system_attrs.get("fixed_params")


def _open_study(folder: StudyFolder, key: str, direction: Literal["minimize", "maximize"]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)  # a first round says little of an order
    return optuna.create_study(
        storage=open_storage(folder.home),
        study_name=f"{folder.name} {key}",
        direction=direction,
        load_if_exists=True,
        pruner=pruner,
    )
