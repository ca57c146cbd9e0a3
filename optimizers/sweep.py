"""One study: Optuna proposes schedules and settings, each trial is one alternation, the report is made at the end.

Knows trials and what is left to do after an interrupt; knows nothing of how a lever or a report works. Optuna's
database holds proposals and values, the round store holds the work: a trial that a killed process left running is
taken up under its own number with the same parameters, and finds its finished rounds stored.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from colever.config import ADAPTIVE, RESUMABLE, PromptSettings, SweepConfig, WeightSettings
from colever.errors import BudgetExhausted, LeverError, StoreError, UsageError
from colever.optimizers import space
from colever.optimizers.alternate import alternate, derive_seed
from colever.optimizers.attribution import build_report, planned
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import Evaluator, Grounds
from colever.optimizers.lever import Lever, NullProgress, Progress, Staged
from colever.optimizers.manifest import manifest
from colever.optimizers.side_by_side import with_rollouts
from colever.optimizers.store import EvaluationStore, RoundStore, study_lock
from colever.optimizers.study import StudyFolder, StudyState, TrialEntry, trial_record
from colever.optimizers.tracker import NullTracker, Tracker
from colever.types import Cost, LeverName, RoundRecord, StudyReport, TrialRecord, digest_of

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task

MakeLevers = Callable[[PromptSettings, WeightSettings], Mapping[LeverName, Lever]]
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def both_levers(prompt: PromptSettings, weights: WeightSettings) -> dict[LeverName, Lever]:
    """The two levers in their default ways."""
    from colever.optimizers.prompt_lever import PromptLever
    from colever.optimizers.weight_lever import WeightLever

    return {"prompt": PromptLever(prompt), "weights": WeightLever(weights)}


def sweep(
    config: SweepConfig,
    task: Task,
    engine: TransformersEngine,
    home: Path,
    *,
    levers: MakeLevers = both_levers,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> StudyReport:
    """Run or continue the study until it has ``config.trials`` trials or its budget ends; its report.

    Raises StoreError where another process runs it, UsageError where it was made with other settings. Trials whose
    pulls failed are in the report's ``failures``: the next call tries them once more, then they are left out. After
    an interrupt the same call goes on.
    """
    name = config.study_name
    folder = StudyFolder(home, name)
    tracker = tracker or NullTracker()
    with study_lock(folder.path, name), _stops_told(tracker):
        run = _Run(config, task, engine, folder, levers, tracker, progress or NullProgress())
        run.open()
        run.run_trials()
        return run.finish()


@contextmanager
def _stops_told(tracker: Tracker) -> Iterator[None]:
    """No tracked run is left running, whatever ends the study; Optuna's database errors become ours."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        tracker.study_stopped("the study database failed")
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StoreError(f"the study database optuna.db cannot be used: {cause}") from error
    except KeyboardInterrupt:
        tracker.study_stopped("interrupted")
        raise
    except Exception as error:
        tracker.study_stopped(str(error))
        raise


@dataclass
class _Run:
    """One call of ``sweep``."""

    config: SweepConfig
    task: Task
    engine: TransformersEngine
    folder: StudyFolder
    levers: MakeLevers
    tracker: Tracker
    progress: Progress
    charged: set[str] = field(default_factory=set)  # rounds on the ledger
    keys: list[str] = field(default_factory=list)  # finished rounds of the trial at hand
    mark: Cost = field(default_factory=Cost)  # the ledger when the last of them, or the trial before, had ended
    failed: list[str] = field(default_factory=list)  # trials that failed for the first time in this call

    def open(self) -> None:
        """Check that this is the same study, say that it starts, evaluate base, and line up the first schedules."""
        config, task = self.config, self.task
        space.ranges(config)
        self.rounds, self.budget = RoundStore(self.folder.home), Budget(config.budget)
        self.rounds.clear()
        self.evaluator = Evaluator.of(
            task, self.engine, EvaluationStore(self.folder.home), config.seed, config.sample_rollouts
        )
        self.base = task.base_candidate()
        self.folder.claim(config)
        self.state = self._state()
        if not self.state.trials:  # a study that goes on was made by its first command
            self.folder.write_manifest(manifest(config, self.evaluator.grounds))
        self.folder.write(self.state)
        splits = [task.described(name) for name in ("train", "dev", "test", *task.watched)]
        plan = f"{config.trials} trials: {'; '.join(space.schedules(config)[: config.trials])}"
        key = study_key(config, self.evaluator.grounds)
        self.tracker.study_started(
            self.folder.name, config.task, config.model, config.model_dump(mode="json"), plan, key,
            splits=splits, manifest=self._manifest(),
        )  # fmt: skip
        self.progress.update(0, len(task.dev), "base on dev")
        self.base_dev = self.evaluator(self.base, budget=self.budget, on_done=self._told("base on dev", len(task.dev)))
        self.tracker.base_evaluated(self.base_dev, self.evaluator.rollouts(self.base))
        self.study = _open_study(self.folder, key)
        self._line_up()
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state in ENDED:
                self._retell(trial)
        for trial in trials:
            if trial.state is TrialState.FAIL:
                self._charge_failed(trial)
        self._write()  # a kill may have come between the study's database and this file

    def run_trials(self) -> None:
        """Trials one after the other, the one that was interrupted first; one that fails leaves the others to run."""
        while self._ended() + len(self.failed) < self.config.trials:
            trial = self._next_trial()
            try:
                self._run_trial(trial)
            except BudgetExhausted as error:
                if error.ledger is self.budget:  # the trial stays open: a larger budget goes on with it
                    self._note(f"Stopped in trial {trial.number}, which is left out: {error}.")
                    return
                self._fail(trial, f"round_{error}")  # a cap on each round: the others may fit
            except LeverError as error:
                self._fail(trial, str(error))

    def finish(self) -> StudyReport:
        """Evaluate the test cells, each once, and report."""
        for lost in self._given_up():
            self._note(f"Trial {lost.number} failed a second time and is left out: {lost.user_attrs['error']}.")
        for failure in self.failed:
            self._note(failure)
        trials = self.folder.trials(self.state)
        plan = planned(self.state, self.base_dev, trials)
        for done, (candidate, split) in enumerate(plan, 1):
            size = len(self.task.examples(split))
            self.evaluator(candidate, split, on_done=self._told(f"{split} ({done} of {len(plan)})", size))
        self.state = replace(self.state, finished=True)
        self.folder.write(self.state)
        report = build_report(self.state, trials, self.folder.evaluations(self.state), self.folder.estimate())
        self.tracker.study_finished(with_rollouts(report, self.folder))
        return replace(report, failures=tuple(self.failed))

    # --- one trial -----------------------------------------------------------------------------------

    def _run_trial(self, trial: optuna.Trial) -> None:
        config = self.config
        schedule, settings = space.suggest(trial, config)
        known = self.study.get_trials(deepcopy=False)[trial.number]
        first, reported = "fixed_params" in known.system_attrs, set(known.intermediate_values)
        levers = self.levers(*space.with_settings(config, schedule, settings))
        self.keys, self.mark = [], self.budget.spent
        pruned = False

        def on_round(index: int, record: RoundRecord, stored: bool) -> bool:
            nonlocal pruned
            self.keys.append(record.key)
            seen = record.key in self.charged
            if stored and not seen:
                self.budget.reserve(rollouts=record.cost.rollouts)
                self.budget.charge(record.cost)
            self.charged.add(record.key)
            self.mark = self.budget.spent
            self.tracker.round_finished(trial.number, index, record, seen, self.evaluator.rollouts(record.child))
            if index not in reported:
                trial.report(record.dev.score, step=index)
            told = index >= max(reported, default=0)  # Optuna judges the last round that was told, before a kill too
            last = schedule == ADAPTIVE or index + 1 == schedule.count(",") + 1  # adaptive: its slices lag at first
            pruned = config.prune and told and not first and not last and trial.should_prune()
            return not pruned

        where = f"trial {self._ended() + 1} of {config.trials} ({schedule})"
        self.tracker.trial_started(trial.number, schedule, settings)
        rounds = alternate(
            self.base, space.order_of(config, schedule), levers, self.evaluator, self.rounds,
            budget=self.budget, round_caps=config.round_budget, on_round=on_round,
            progress=Staged(self.progress, where),
        )  # fmt: skip
        entry = TrialEntry(trial.number, schedule, settings, "pruned" if pruned else "complete", tuple(self.keys))
        record = trial_record(entry, rounds, self.base)
        trial.set_user_attr("rounds", self.keys)
        trial.set_user_attr("schedule", schedule)
        trial.set_user_attr("settings", settings)
        value = record.dev.score if record.dev else self.base_dev.score
        self.study.tell(trial, None if pruned else value, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)
        self._write()
        self.tracker.trial_finished(record)

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        """Book a trial whose pull failed, with what it spent: the other trials run, and the ledger stays true.

        A pull that goes on from a checkpoint when it is tried once more counts what lies before it twice.
        """
        trial.set_user_attr("error", reason)
        trial.set_user_attr("rounds", self.keys)
        trial.set_user_attr("lost", asdict(self.budget.spent - self.mark))
        self.study.tell(trial, state=TrialState.FAIL)
        self._write()
        if trial.number not in {t.number for t in self._given_up()}:
            self.failed.append(f"Trial {trial.number} failed: {reason}.")

    def _charge_failed(self, trial: optuna.trial.FrozenTrial) -> None:
        """What a failed trial of an earlier call spent, its finished rounds included."""
        self.budget.charge(Cost(**trial.user_attrs["lost"]))
        for key in trial.user_attrs["rounds"]:
            record = None if key in self.charged else self.rounds.get(key)
            if record is not None:
                self.budget.charge(record.cost)
                self.charged.add(key)

    def _next_trial(self) -> optuna.Trial:
        """The interrupted trial under its own number, else the next one lined up, else a proposal."""
        trials = self.study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state is TrialState.RUNNING]
        number = running[0].number if running else len(trials)
        self.study.sampler = sampler_of(self.config.sampler, derive_seed(self.config.seed, number))
        return optuna.Trial(self.study, running[0]._trial_id) if running else self.study.ask()

    def _line_up(self) -> None:
        """Enqueue the first schedules, as many as there are trials, and once more those that failed."""
        trials = self.study.get_trials(deepcopy=False)
        known = [t.system_attrs.get("fixed_params") or t.params for t in trials]
        for schedule in self.config.schedules[: self.config.trials]:
            params = space.arm_params(self.config, schedule)
            if params not in known:
                self.study.enqueue_trial(params)
        living = [t.params or t.system_attrs.get("fixed_params") for t in trials if t.state is not TrialState.FAIL]
        living += [t.params for t in self._given_up()]
        for trial in trials:
            if trial.state is TrialState.FAIL and trial.params and trial.params not in living:
                self.study.enqueue_trial(trial.params)
                living.append(trial.params)

    def _given_up(self) -> list[optuna.trial.FrozenTrial]:
        """Failed trials whose parameters had failed before, the first such of each: they count as ended."""
        failed: list[optuna.trial.FrozenTrial] = []
        lost: dict[str, optuna.trial.FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is TrialState.FAIL:
                if any(trial.params == other.params for other in failed):
                    lost.setdefault(str(sorted(trial.params.items())), trial)
                failed.append(trial)
        return list(lost.values())

    def _retell(self, trial: optuna.trial.FrozenTrial) -> None:
        """An ended trial, told and charged again as if it ran now; a round that is gone is made again."""
        self._restore(_entry(trial))
        record = self._record(trial)
        self.tracker.trial_started(record.number, record.schedule, record.settings)
        for index, made in enumerate(record.rounds):
            seen = made.key in self.charged
            if not seen:
                self.budget.charge(made.cost)
            self.charged.add(made.key)
            self.tracker.round_finished(record.number, index, made, seen, self.evaluator.rollouts(made.child))
        self.tracker.trial_finished(record)

    def _restore(self, entry: TrialEntry) -> None:
        """Compute again the rounds of an ended trial that are no longer stored (a corrupt one was deleted, say)."""
        if all(self.rounds.get(key) is not None for key in entry.rounds):
            return
        levers = self.levers(*space.with_settings(self.config, entry.schedule, dict(entry.settings)))
        order, most = space.order_of(self.config, entry.schedule), len(entry.rounds)
        made = alternate(
            self.base, lambda done: order(done) if len(done) < most else None, levers, self.evaluator, self.rounds,
            budget=Budget(), round_caps=self.config.round_budget, progress=self.progress,
        )  # fmt: skip
        if [record.key for record in made] != list(entry.rounds):
            raise StoreError(
                f"trial {entry.number} of study {self.folder.name!r} cannot be made again: its rounds came out "
                f"otherwise; give the study another --study name, or delete {self.folder.path}"
            )

    # --- what is stored ------------------------------------------------------------------------------

    def _state(self) -> StudyState:
        """A new study's state, or the stored one. Raises UsageError where task or model are no longer the same."""
        task, config, grounds = self.task, self.config, self.evaluator.grounds
        old = self.folder.state()
        if old is not None and old.trials and old.grounds != grounds:
            changed = [n for n in ("task", "engine", "versions") if getattr(old.grounds, n) != getattr(grounds, n)]
            raise UsageError(
                f"study {self.folder.name!r}: its {' and '.join(changed)} changed since it was started: give this one "
                f"another --study name, or delete {self.folder.path}"
            )
        return StudyState(
            study=self.folder.name, task=config.task, model=config.model, target=task.target,
            has_gold=task.gold is not None, seed=config.seed, grounds=grounds, base=self.base,
            watched=tuple(task.watched), schedules=config.schedules, trials=old.trials if old else (),
            started=old.started if old else time.time(),
        )  # fmt: skip

    def _write(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        entries = tuple(_entry(t) for t in trials if t.state in ENDED)
        failed = [t.user_attrs for t in trials if t.state is TrialState.FAIL]
        lost = sum((Cost(**attributes["lost"]) for attributes in failed), Cost())
        shared = {key for entry in entries for key in entry.rounds}
        for key in {key for attributes in failed for key in attributes["rounds"]} - shared:
            record = self.rounds.get(key)
            lost = lost + (record.cost if record else Cost())
        self.state = replace(self.state, trials=entries, lost=lost)
        self.folder.write(self.state)

    def _record(self, trial: optuna.trial.FrozenTrial) -> TrialRecord:
        return self.folder.trials(replace(self.state, trials=(_entry(trial),)))[0]

    def _manifest(self) -> dict[str, Any] | None:
        """None of a study that was made before there were manifests."""
        try:
            return self.folder.manifest()
        except StoreError:
            return None

    def _note(self, text: str) -> None:
        self.state = replace(self.state, notes=(*self.state.notes, text))

    def _ended(self) -> int:
        return len(self._given_up()) + sum(t.state in ENDED for t in self.study.get_trials(deepcopy=False))

    def _told(self, text: str, total: int) -> Callable[[int], None]:
        return lambda done: self.progress.update(done, total, text)


def _entry(trial: optuna.trial.FrozenTrial) -> TrialEntry:
    attributes = trial.user_attrs
    return TrialEntry(
        trial.number, attributes["schedule"], attributes["settings"], STATES[trial.state], tuple(attributes["rounds"])
    )


def study_key(config: SweepConfig, grounds: Grounds) -> str:
    """Of everything that a study's trials depend on, so that a study deleted and made otherwise starts anew."""
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in RESUMABLE}
    return digest_of([settings, asdict(grounds)])


def _open_study(folder: StudyFolder, key: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder.home / "optuna.db"
    with FileLock(folder.home / "optuna.lock"):
        if not path.exists():  # made aside and renamed: a kill leaves no half-made database
            fresh = folder.home / ".optuna.db.tmp"
            fresh.unlink(missing_ok=True)
            made = _storage(fresh)
            made.remove_session()
            made.engine.dispose()
            fresh.replace(path)
        storage = _storage(path)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)  # a first round says little of an order
    return optuna.create_study(
        storage=storage, study_name=f"{folder.name} {key}", direction="maximize", load_if_exists=True, pruner=pruner
    )


def _storage(path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


def sampler_of(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by the trial's number: a restart proposes the same, and no two are alike."""
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=8, deterministic_objective=False)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of group=True, tried with this version
        return optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=5, seed=seed)
