"""One study: Optuna proposes schedules and settings, each trial is one alternation, the report is made at the end.

Knows trials and what is left to do after an interrupt; knows nothing of how a lever or a report works. Optuna's
database holds proposals and values, the round store holds the work: a trial that a killed process left running is
taken up under its own number with the same parameters, and finds its finished rounds stored. Several processes may
run one study at once: each takes trials from the same database, and rounds from the same store.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from colever.config import ADAPTIVE, UNTRAINABLE, WRITTEN_WAYS, PromptSettings, SweepConfig, WeightSettings
from colever.engines.bench import answers_in, seated
from colever.errors import BudgetExhausted, LeverError, StoreError, UsageError
from colever.optimizers import space
from colever.optimizers.alternate import alternate
from colever.optimizers.anchors import Anchors
from colever.optimizers.attribution import arms_of, planned, stored_report
from colever.optimizers.budget import Budget
from colever.optimizers.elsewhere import other_tasks, others_of, read_elsewhere, trained
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.fronts import AXES
from colever.optimizers.guard import Rules, looks, refused, unhacked
from colever.optimizers.ledger import Ledger
from colever.optimizers.lever import Checked, Lever, NullProgress, Progress, Staged
from colever.optimizers.manifest import manifest
from colever.optimizers.side_by_side import with_rollouts
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.optimizers.study import StudyFolder, StudyState, TrialEntry, priced, trial_record
from colever.optimizers.tracker import NullTracker, Tracker
from colever.optimizers.trials import Trials, entry_of, study_key
from colever.optimizers.workers import Workers
from colever.reported import StudyReport
from colever.ship.start import starting
from colever.tasks.judges import open_judges, with_judge
from colever.types import Cost, LeverName, RoundRecord, TrialRecord

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task

MakeLevers = Callable[[PromptSettings, WeightSettings], Mapping[LeverName, Lever]]
MakeWeightLever = Callable[[WeightSettings], Lever]
POLL = 0.5  # seconds between looks at what other workers do


def levers_for(
    config: SweepConfig, engine: TransformersEngine, weight_lever: MakeWeightLever | None = None
) -> MakeLevers:
    """The two levers, with the study's proposer. Raises UsageError where it cannot be used; one call is a probe.

    ``weight_lever`` makes the one that several processes pull; without it ``training.processes`` has to be 1.
    """
    from colever.optimizers.prompt_lever import PromptLever
    from colever.optimizers.proposer import open_proposer, probe
    from colever.optimizers.weight_lever import WeightLever

    if weight_lever is None and config.training.processes > 1:
        raise UsageError(
            f"training.processes={config.training.processes}: sweep, optimize and rerun start further processes; "
            "accepted here: 1"
        )
    make = weight_lever or WeightLever
    proposer = open_proposer(config.proposer, engine)
    if proposer is not None and any(way in WRITTEN_WAYS for way in space.drawn_ways(config)):
        probe(proposer)
    return lambda prompt, weights: {"prompt": PromptLever(prompt, proposer), "weights": make(weights)}


def sweep(
    config: SweepConfig,
    task: Task,
    engine: TransformersEngine,
    home: Path,
    *,
    levers: MakeLevers | None = None,
    weight_lever: MakeWeightLever | None = None,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> StudyReport:
    """Run or continue the study until it has ``config.trials`` trials or its budget ends; its report.

    A second process that calls this for the same study works along: the two share out trials and rounds, and both
    return the report when all is done. Raises UsageError where the study was made with other settings. Trials whose
    pulls failed are in the report's ``failures``: the next call tries them once more, then they are left out. After
    an interrupt the same call goes on.
    """
    folder = StudyFolder(home, config.study_name)
    tracker, workers = tracker or NullTracker(), Workers.of(folder.home, folder.name)
    with workers.joined(), _stops_told(tracker, workers), seated(config.judge, answers_in(folder.home)) as bench:
        task = with_judge(task, config.judge.model)
        open_judges(task, bench)
        levers = levers or levers_for(config, engine, weight_lever)
        told = Checked(progress or NullProgress(), workers.check)
        run = _Run(config, task, engine, folder, levers, tracker, told, workers)
        run.open()
        run.run_trials()
        return run.finish()


@contextmanager
def _stops_told(tracker: Tracker, workers: Workers) -> Iterator[None]:
    """None of this worker's tracked runs is left running, whatever ends it; Optuna's database errors become ours."""

    def stopped(reason: str) -> None:
        with workers.writing():
            tracker.study_stopped(reason, alone=not workers.others())

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        stopped("the study database failed")
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StoreError(f"the study database (optuna.db, or the shared one) cannot be used: {cause}") from error
    except KeyboardInterrupt:
        stopped("interrupted")
        raise
    except Exception as error:
        stopped(str(error))
        raise


@dataclass
class _Run:
    """One call of ``sweep``: one worker."""

    config: SweepConfig
    task: Task
    engine: TransformersEngine
    folder: StudyFolder
    levers: MakeLevers
    tracker: Tracker
    progress: Progress
    workers: Workers
    keys: list[str] = field(default_factory=list)  # finished rounds of the trial at hand
    spent: bool = False  # the study's budget has ended

    def open(self) -> None:
        """Check that this is the same study, say that it starts, evaluate base, and line up the first schedules."""
        config, task = self.config, self.task
        space.ranges(config)
        self.others = other_tasks(config)
        self.rounds = RoundStore(self.folder.home)
        self.ledger = Ledger(config, self.workers)
        self.budget = self.ledger.budget
        self.rounds.clear()
        self.evaluator = Evaluator.of(
            task, self.engine, EvaluationStore(self.folder.home), config.seed, config.sample_rollouts
        )
        self.base = starting(config.start, task, config.model, self.folder.home)
        for way in space.drawn_ways(config):  # what a pull can't work with is told before one is run
            prompt = config.prompt.model_copy(update={"way": way})
            self.levers(prompt, config.weights)["prompt"].planned(self.base, task)
        key = study_key(config, self.evaluator.grounds)
        with self.workers.writing():
            alone = not self.workers.others()
            self.folder.claim(config, running=not self.workers.first)
            self.state = self._state()
            if not config.trainable:
                self._note(f"{UNTRAINABLE}.")
            if line := space.left_out(config):
                self._note(line)
            if not self.state.trials and (alone or self._manifest() is None):  # it goes on: its first command made it
                self.folder.write_manifest(manifest(config, self.evaluator.grounds, task))
            self.folder.write(self.state)
            plan = f"{config.trials} trials: {'; '.join(space.schedules(config)[: config.trials])}"
            splits = [task.described(name) for name in ("train", "dev", "test", *task.watched)]
            self.tracker.study_started(
                self.folder.name, config.task, config.model, config.model_dump(mode="json"), plan, key,
                splits, self._manifest(), alone=alone,
            )  # fmt: skip
        self.anchors = Anchors(task, f"{self.folder.name} {self.state.started}")
        self.anchors.begin(self.budget)
        self.progress.update(0, len(task.dev), "base on dev")
        self.base_dev = self.evaluator(self.base, budget=self.budget, on_done=self._told("base on dev", len(task.dev)))
        self.ledger.open()
        with self.workers.writing():
            self.tracker.base_evaluated(self.base_dev, self.evaluator.rollouts(self.base))
            self.trials = Trials(self.folder, config, key, self.workers)
            self.trials.line_up(again=self.workers.first)
            known = self.tracker.told() | self.workers.elsewhere()  # whoever holds an ended trial is telling of it
            for trial in self.trials.ended():
                self._retell(trial, tell=trial.number not in known)
            self.ledger.catch_up([*self.trials.ended(), *self.trials.failed()], self.rounds)
            self._write()  # a kill may have come between the study's database and this file

    def run_trials(self) -> None:
        """Trials one after the other, one that was interrupted first, until no worker has one left."""
        pause = POLL
        while True:
            with self.workers.writing():
                self.ledger.catch_up([*self.trials.ended(), *self.trials.failed()], self.rounds)
                trial = None if self.spent else self.trials.claim()
                elsewhere = [] if trial else self.trials.elsewhere()
            if trial is not None:
                self._try(trial)
                self.workers.release(trial.number)
                pause = POLL
            elif elsewhere:
                numbers = ", ".join(map(str, elsewhere))
                self.progress.update(self.trials.done(), self.config.trials, f"others run trial {numbers}")
                time.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(1.2 * pause, max(POLL, self.workers.slowest))
            else:
                return

    def finish(self) -> StudyReport:
        """Evaluate the test cells, each once, and report."""
        with self.workers.finishing(lambda: self.progress.update(0, 1, "another worker reads test")):
            if self.tracker.concurrent:  # else a trial's end and what is told of it are one
                self._tell_the_rest()
            self._refresh()
            failures = [f"Trial {t.number} failed: {t.user_attrs['error']}." for t in self.trials.to_retry()]
            for lost in self.trials.given_up():
                self._note(f"Trial {lost.number} failed a second time and is left out: {lost.user_attrs['error']}.")
            for failure in failures:
                self._note(failure)
            trials = self.folder.trials(self.state)
            plan = planned(self.state, self.base_dev, trials)
            for done, (candidate, split) in enumerate(plan, 1):
                size = len(self.task.examples(split))
                self.evaluator(candidate, split, on_done=self._told(f"{split} ({done} of {len(plan)})", size))
            weights = trained(arms_of(self.state, self.base_dev, trials))
            for note in read_elsewhere(self.others, self.evaluator, weights, self.progress):
                self._note(note)
            for note in self.anchors.end(f"after {len(self.state.trials)} trials"):
                self._note(note)
            self.state = replace(self.state, finished=True, elsewhere=others_of(self.others) if weights else {})
            report = stored_report(self.folder, self.state, trials)
            with self.workers.writing():
                self.folder.write(self.state)
                self.tracker.study_finished(with_rollouts(report, self.folder))
        return replace(report, failures=tuple(failures))

    # --- one trial -----------------------------------------------------------------------------------

    def _try(self, trial: optuna.Trial) -> None:
        """Run it; one that fails leaves the others to run, and one that passes the study's budget ends the search."""
        try:
            self._run_trial(trial)
        except BudgetExhausted as error:
            if error.ledger is not self.budget:
                self._fail(trial, f"round_{error}")  # a cap on each round: the others may fit
                return
            self.spent = True  # the trial stays open: a larger budget goes on with it
            self._note(f"Stopped in trial {trial.number}, which is left out: {error}.")
        except LeverError as error:
            self._fail(trial, str(error))

    def _run_trial(self, trial: optuna.Trial) -> None:
        config = self.config
        schedule, settings = space.suggest(trial, config)
        known = self.trials.all()[trial.number]
        first, reported = "fixed_params" in known.system_attrs, set(known.intermediate_values)
        levers = self._levers(schedule, settings)
        self.keys = []
        self.ledger.mark()
        pruned, played = False, list[RoundRecord]()

        def on_round(index: int, record: RoundRecord, stored: bool) -> bool:
            nonlocal pruned
            self.workers.check()
            self.keys.append(record.key)
            played.append(record)
            seen = self.ledger.end_round(record, stored)
            with self._telling():
                kept = self.evaluator.rollouts(record.child)
                self.tracker.round_finished(trial.number, index, self._at_price(record), seen, kept)
                self._judge(trial.number, played)
            if index not in reported:
                with self._writing():
                    trial.report(record.dev.score, step=index)
            told = index >= max(reported, default=0)  # Optuna judges the last round that was told, before a kill too
            last = schedule == ADAPTIVE or index + 1 == schedule.count(",") + 1  # adaptive: its slices lag at first
            pruned = config.prune and told and not first and not last and trial.should_prune()
            return not pruned

        with self._writing():
            place = self.trials.done() + len(self.trials.elsewhere()) + 1
            trial.set_user_attr("schedule", schedule)
            trial.set_user_attr("settings", settings)
        with self._telling():
            self.tracker.trial_started(trial.number, schedule, settings)
        where = f"trial {place} of {config.trials} ({schedule})"
        order = unhacked(self.state.guard, space.order_of(config, schedule, self.task.target))
        rounds = alternate(
            self.base, order, levers, self.evaluator, self.rounds, budget=self.budget,
            round_caps=config.round_budget, refuse=partial(refused, rules=self.state.guard), on_round=on_round,
            progress=Staged(self.progress, where),
        )  # fmt: skip
        entry = TrialEntry(trial.number, schedule, settings, "pruned" if pruned else "complete", tuple(self.keys))
        record = trial_record(entry, rounds, self.base)
        score = record.dev.score if record.dev else self.base_dev.score
        value = AXES[config.axis](record.cost.priced(config.dollars_per_hour)) if config.objective == "cost" else score
        with self._telling():
            with self._writing():
                trial.set_user_attr("rounds", self.keys)
                trial.set_user_attr("short", self.task.target - score)
                state = TrialState.PRUNED if pruned else TrialState.COMPLETE
                self.trials.study.tell(trial, None if pruned else value, state=state)
                self.ledger.end_trial(trial.number)
                self._write()
            self.tracker.trial_finished(priced(record, config.dollars_per_hour))

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        """Book a trial whose pull failed, with what it spent: the other trials run, and the ledger stays true.

        A pull that goes on from a checkpoint when it is tried once more counts what lies before it twice.
        """
        with self._telling():
            with self._writing():
                trial.set_user_attr("error", reason)
                trial.set_user_attr("rounds", self.keys)
                trial.set_user_attr("lost", asdict(self.ledger.fail_trial(trial.number)))
                self.trials.study.tell(trial, state=TrialState.FAIL)
                self._write()
            self.tracker.trial_finished(priced(self._record(trial.number), self.config.dollars_per_hour))

    # --- what an earlier call did --------------------------------------------------------------------

    def _retell(self, trial: optuna.trial.FrozenTrial, *, tell: bool) -> None:
        """An ended trial, charged again as if it ran now, and told if ``tell``; a round that is gone is made again."""
        if trial.state is not TrialState.FAIL:
            self._restore(entry_of(trial))
            self.ledger.end_trial(trial.number)
        record = self._record(trial.number)
        if tell:
            self.tracker.trial_started(record.number, record.schedule, record.settings)
        for index, made in enumerate(record.rounds):
            seen = made.key in self.ledger
            self.ledger.charge(made.key, made.cost)
            if not tell:
                continue
            kept = self.evaluator.rollouts(made.child)
            self.tracker.round_finished(record.number, index, self._at_price(made), seen, kept)
            self._judge(record.number, record.rounds[: index + 1])
        if tell:
            self.tracker.trial_finished(priced(record, self.config.dollars_per_hour))

    def _tell_the_rest(self) -> None:
        """Of trials whose worker was killed before it told of them; who is telling now is waited for."""
        while True:
            told = self.tracker.told()
            with self.workers.writing():
                missing = [t for t in (*self.trials.ended(), *self.trials.failed()) if t.number not in told]
                if not {t.number for t in missing} & self.workers.elsewhere():
                    for trial in missing:
                        self._retell(trial, tell=True)
                    return
            self.progress.update(0, 1, "others tell of their trials")
            time.sleep(POLL)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what is written of this worker's own trial. Raises StoreError where it may be another's by now."""
        with self.workers.writing():
            self.workers.check()
            yield

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Around what the tracker is told of this worker's own trial: a server bears many at once, sqlite one."""
        with nullcontext() if self.tracker.concurrent else self.workers.writing():
            self.workers.check()
            yield

    def _restore(self, entry: TrialEntry) -> None:
        """Compute again the rounds of an ended trial that are no longer stored (a corrupt one was deleted, say)."""
        if all(self.rounds.get(key) is not None for key in entry.rounds):
            return
        levers = self._levers(entry.schedule, entry.settings)
        order, most = space.order_of(self.config, entry.schedule, self.task.target), len(entry.rounds)
        made = alternate(
            self.base, lambda done: order(done) if len(done) < most else None, levers, self.evaluator, self.rounds,
            budget=Budget(), round_caps=self.config.round_budget, progress=self.progress,
        )  # fmt: skip
        if [record.key for record in made] != list(entry.rounds):
            raise StoreError(
                f"trial {entry.number} of study {self.folder.name!r} cannot be made again: its rounds came out "
                f"otherwise; give the study another --study name, or delete {self.folder.where}"
            )

    def _levers(self, schedule: str, settings: Mapping[str, Any]) -> Mapping[LeverName, Lever]:
        """The levers as a trial has them."""

        def planned(prompt: PromptSettings) -> int:
            return self.levers(prompt, self.config.weights)["prompt"].planned(self.base, self.task)

        return self.levers(*space.with_settings(self.config, schedule, settings, planned))

    def _judge(self, trial: int, rounds: Sequence[RoundRecord]) -> None:
        """Tell what the guard sees in the last round."""
        if (seen := looks(rounds, self.state.guard)[-1]) is not None:
            self.tracker.round_judged(trial, len(rounds) - 1, seen)

    # --- what is stored ------------------------------------------------------------------------------

    def _state(self) -> StudyState:
        """A new study's state, or the stored one. Raises UsageError where task or model are no longer the same."""
        task, config, grounds = self.task, self.config, self.evaluator.grounds
        old = self.folder.state()
        if old is not None and (old.trials or not self.workers.first) and old.grounds != grounds:
            changed = [n for n in ("task", "engine", "versions") if getattr(old.grounds, n) != getattr(grounds, n)]
            raise UsageError(
                f"study {self.folder.name!r}: its {' and '.join(changed)} changed since it was started: give this one "
                f"another --study name, or delete {self.folder.where}"
            )
        if old is not None and old.trials and old.base.digest != self.base.digest:
            raise UsageError(
                f"study {self.folder.name!r} began with another candidate: give this one another --study name"
            )
        return StudyState(
            study=self.folder.name, task=config.task, model=config.model, target=task.target,
            has_gold=task.gold is not None, seed=config.seed, grounds=grounds, base=self.base,
            watched=tuple(task.watched), schedules=config.schedules, trials=old.trials if old else (),
            started=old.started if old else time.time(), objective=config.objective, axis=config.axis,
            dollars_per_hour=config.dollars_per_hour, guard=Rules.of(config.guard, task.rubric),
            rubric=task.rubric.digest(), place=os.getcwd(),
        )  # fmt: skip

    def _write(self) -> None:
        """The study's file, from its database."""
        self._refresh()
        self.folder.write(self.state)

    def _refresh(self) -> None:
        """The state, from the study's database."""
        entries = tuple(map(entry_of, self.trials.ended()))
        failed = [t.user_attrs for t in self.trials.failed()]
        lost = sum((Cost(**attributes["lost"]) for attributes in failed), Cost())
        shared = {key for entry in entries for key in entry.rounds}
        for key in {key for attributes in failed for key in attributes["rounds"]} - shared:
            record = self.rounds.get(key)
            lost = lost + (record.cost if record else Cost())
        self.state = replace(self.state, trials=entries, lost=lost)

    def _record(self, number: int) -> TrialRecord:
        return self.folder.trials(replace(self.state, trials=(entry_of(self.trials.all()[number]),)))[0]

    def _at_price(self, record: RoundRecord) -> RoundRecord:
        return replace(record, cost=record.cost.priced(self.config.dollars_per_hour))

    def _manifest(self) -> dict[str, Any] | None:
        """None of a study that was made before there were manifests."""
        try:
            return self.folder.manifest()
        except StoreError:
            return None

    def _note(self, text: str) -> None:
        self.state = replace(self.state, notes=(*self.state.notes, text))

    def _told(self, text: str, total: int) -> Callable[[int], None]:
        return lambda done: self.progress.update(done, total, text)
