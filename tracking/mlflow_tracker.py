"""A study as MLflow runs: study → trial → round, nested by explicit ids, in ``<home>/mlflow.db``.

Told everything twice, it writes everything once: runs are found by their tags, and a metric's timestamp is its
run's own start, so that MLflow sees a repeated value as the same one. A run that a killed process left
RUNNING is closed when its study starts again, and taken up when its trial does. No active-run state is used.
Knows records and runs; knows no tasks, engines or levers.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.errors import StoreError
from colever.looks import Look
from colever.reported import StudyReport
from colever.samples import SampledRollout
from colever.split import Split
from colever.tracking import numbers, store
from colever.tracking.inputs import log_inputs
from colever.tracking.machine import Machine
from colever.tracking.names import COLOURS, along
from colever.tracking.note import study_note, trial_note
from colever.tracking.page import to_html
from colever.tracking.prompt_registry import PromptRegistry
from colever.tracking.registry import SMALL_WEIGHTS, register, size_of
from colever.tracking.report import spelled
from colever.tracking.report_json import to_json
from colever.tracking.server import create_once
from colever.tracking.traces import link_traces, log_traces, replace_traces
from colever.tracking.view import quoted, study_views, tags_of
from colever.types import Candidate, Evaluation, RoundRecord, TrialRecord

if TYPE_CHECKING:
    from mlflow.entities import Run

NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
COLOUR = "mlflow.runColor"
_log = logging.getLogger(__name__)


class MlflowTracker:
    """Implements the optimizers' ``Tracker`` protocol.

    Raises StoreError where the database or the artifacts folder cannot be used (busy ones after ``wait``
    seconds); the rounds themselves lie in the round store, and the same calls may be made again.
    """

    def __init__(self, home: Path, *, wait: float = store.WAIT_SECONDS) -> None:
        self.home = Path(home)
        self._wait = wait
        self._client = store.open_client(self.home, wait)
        self._uri, self._experiment = store.tracking_uri(self.home), ""
        self._study = ""
        self._labels: dict[str, str] = {}  # task and model: tags of every run
        self._study_run = self._base_run = ""
        self._trial_runs: dict[int, Run] = {}
        self._rounds: dict[int, list[RoundRecord]] = {}  # of the trials told of in this process
        self._splits: Sequence[Split] = ()
        self._config: dict[str, Any] = {}
        self._manifest: dict[str, Any] = {}
        self._machine = Machine()

    # --- the protocol ----------------------------------------------------------------------------

    @property
    def concurrent(self) -> bool:
        return bool(store.server(self.home))

    def study_started(
        self,
        study: str,
        task: str,
        model: str,
        config: Mapping[str, Any],
        plan: str,
        key: str = "",
        splits: Sequence[Split] = (),
        manifest: Mapping[str, Any] | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """Open (or take up again) the study's run; if ``alone`` close whatever a killed process left RUNNING in it.

        Runs of an earlier study of this name and another key keep their data under another study name.
        """
        with self._guarded():
            self._study, self._labels = study, {"task": task, "model": model, "study": study}
            self._experiment = store.experiment(self._client, self.home, task)
            self._prompts = PromptRegistry(self._client, self.home, study, task, self._experiment)
            self._trial_runs, self._rounds, self._base_run = {}, {}, ""
            self._splits, self._config, self._manifest = splits, dict(config), dict(manifest or {})
            self._set_aside(key)
            run = self._find(kind="study") or self._create(study, {"kind": "study", "key": key})
            self._study_run = run.info.run_id
            if alone:
                self._close_running(except_for=self._study_run)
            self._client.update_run(self._study_run, status="RUNNING")
            self._log_params(run, numbers.params_of({k: v for k, v in config.items() if not isinstance(v, Mapping)}))
            self._client.log_dict(self._study_run, json.loads(json.dumps(dict(config), default=str)), "config.json")
            if manifest is not None:
                self._client.log_dict(self._study_run, dict(manifest), "manifest.json")
            log_inputs(self._client, self._study_run, task, splits)
            self._log(self._study_run, tags={NOTE: f"Running: {plan}", "stopped": "no"})
            base = self._find(kind="base")
            self._write_views("gold" if base is not None and "dev/gold" in base.data.metrics else "score")
            if alone:  # else another process writes them
                self._machine.watch(self._uri, self._study_run)

    def base_evaluated(self, state: Evaluation, rollouts: Sequence[SampledRollout] = ()) -> None:
        """What every arm starts from, as an arm of its own: nothing pulled, nothing gained, nothing spent."""
        with self._guarded():
            run = self._find(kind="base")
            if run is None:
                tags = {"kind": "base", "trial": "base", "schedule": "", "arm": "yes", COLOUR: COLOURS[""]}
                run = self._create("base", tags, self._study_run)
            self._base_run = run.info.run_id
            if run.info.status == "FINISHED":
                return
            self._log(run.info.run_id, numbers.of_base(state), run.info.start_time)
            self._log_params(run, {"schedule": "base"})
            self._log_used(run, ("dev",))
            log_traces(self._uri, run, rollouts, {"study": self._study, "split": "dev", "round": "base"})
            self._client.set_terminated(run.info.run_id, "FINISHED")
            self._write_views("score" if state.gold is None else "gold")

    def told(self) -> set[int]:
        """The trials that were told of to their end, by whichever process."""
        with self._guarded():
            return {int(run.data.tags["trial"]) for run in self._search(kind="trial") if "state" in run.data.tags}

    def trial_started(self, number: int, schedule: str, settings: Mapping[str, Any]) -> None:
        with self._guarded():
            tags = {"kind": "trial", "trial": str(number), "schedule": schedule, "arm": "yes"}
            run = self._find(kind="trial", trial=str(number))
            if run is None:
                tags |= {COLOUR: COLOURS[schedule]} if schedule in COLOURS else {}
                run = self._create(f"{spelled(schedule)} #{number}", tags, parent=self._study_run)
            self._trial_runs[number], self._rounds[number] = run, []
            if "state" not in run.data.tags:
                self._client.update_run(run.info.run_id, status="RUNNING")
            self._log_params(run, numbers.params_of({"schedule": schedule, **settings}))

    def round_finished(
        self, trial: int, index: int, record: RoundRecord, reused: bool, rollouts: Sequence[SampledRollout] = ()
    ) -> None:
        """Log round ``index`` (from 0) of a trial once: as its own run, and as the next step of the trial's curves."""
        with self._guarded():
            parent, rounds = self._trial_runs[trial], self._rounds[trial]
            rounds[index:] = [record]
            run = self._find(kind="round", trial=str(trial), round=str(index + 1))
            if run is not None and run.data.tags.get("key") != record.key:
                self._client.delete_run(run.info.run_id)  # another round took its place: the plan has changed
                run = None
            if run is not None and run.info.status == "FINISHED":
                return
            if run is None:
                run = self._create_round(parent, index, record, reused)
            self._log_round(run, record)
            self._prompts.log_round(run, record, self._base_run)
            self._log_used(run, ("train", "dev"))
            self._log_rollouts(run, record, rollouts)
            new_steps = numbers.of_path(rounds, first_step=index + 1 if index else 0)
            self._log(parent.info.run_id, new_steps, parent.info.start_time)
            seconds = 0.0 if run.data.tags["reused"] == "yes" else record.cost.seconds
            self._client.set_terminated(
                run.info.run_id, "FINISHED", end_time=run.info.start_time + round(1000 * seconds)
            )

    def round_judged(self, trial: int, index: int, look: Look) -> None:
        """On the round's run and as the next step of the trial's curve; an alarm is a tag of both and of the study."""
        with self._guarded():
            parent, tag = self._trial_runs[trial], {"hacking": "yes" if look.alarm else "no"}
            run = self._find(kind="round", trial=str(trial), round=str(index + 1))
            if run is not None:
                self._log(run.info.run_id, numbers.of_look(look), run.info.start_time, tag)
            points = numbers.of_look(look, index + 1)
            self._log(parent.info.run_id, points, parent.info.start_time, tag)
            if look.alarm:
                self._log(self._study_run, tags=tag)

    def trial_finished(self, record: TrialRecord) -> None:
        with self._guarded():
            run = self._trial_runs[record.number]
            if "state" in run.data.tags:
                return
            self._log(
                run.info.run_id,
                numbers.of_trial(record),
                run.info.start_time,
                {NOTE: trial_note(record)},
            )
            self._log_candidate(run.info.run_id, record.candidate, weights=True)
            status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[record.state]
            self._client.set_terminated(run.info.run_id, status)
            self._log(run.info.run_id, tags={"state": record.state})  # last: a trial that has it is told in full

    def study_finished(self, report: StudyReport) -> None:
        """Test cells and effects on the study's run, test values on its trials, the report and figures as artifacts."""
        with self._guarded():
            study = self._client.get_run(self._study_run)
            measure = "gold" if report.has_gold else "score"
            tested = {str(arm.trial): arm.test for arm in report.arms}
            base = report.table["base"]
            estimate = base.gold if report.has_gold else base.score
            tested["base"] = estimate.value if estimate else None
            for run in self._search(arm="yes"):
                if (value := tested.get(run.data.tags["trial"])) is not None:
                    self._log(run.info.run_id, [(f"test/{measure}", 0, round(value, 4))], run.info.start_time)
            tags = {NOTE: study_note(report), "winner": report.winner, "stopped": "no"}
            # A study may end again, with more trials: of two values at one time, MLflow would show the larger.
            changed = [p for p in numbers.of_study(report) if study.data.metrics.get(p[0]) != p[2]]
            self._log(self._study_run, changed, _now(), tags)
            self._client.log_dict(self._study_run, to_json(report), "report.json")
            self._client.log_text(self._study_run, to_html(report), "report.html")
            self._log_figures(report)
            self._write_views(measure)
            kept = zip(("base", "winner"), zip(*report.rollouts.values(), strict=True), strict=False)
            replace_traces(self._uri, study, dict(kept))
            if report.path:
                register(self._client, study, report, self._config, self._manifest)
                self._prompts.log_winner(self._study_run, report)
            self._machine.leave()
            self._close_running(except_for=self._study_run)
            self._client.set_terminated(self._study_run, "FINISHED")

    def study_stopped(self, reason: str, *, alone: bool = True) -> None:
        """Close every RUNNING run, or this process's own. Never raises a StoreError: another error is on its way."""
        self._machine.leave(at_once=True)
        if not self._study_run:
            return
        try:
            with self._guarded():
                if alone:
                    self._log(self._study_run, tags={"stopped": reason[:500] or "yes"})
                    self._close_running()
                    return
                own = {run.info.run_id for run in self._trial_runs.values()}
                for run in list(self._search(status="RUNNING")):
                    if own & {run.info.run_id, run.data.tags.get(PARENT, "")}:
                        self._client.set_terminated(run.info.run_id, "KILLED")
        except StoreError as error:
            _log.warning("runs of study %s stay open until it is run again: %s", self._study, error)

    # --- runs ------------------------------------------------------------------------------------

    def _guarded(self) -> Any:
        return store.guarded(self.home, self._wait)

    def _find(self, **tags: str) -> Run | None:
        return next(iter(self._search(**tags)), None)

    def _search(self, *, status: str | None = None, **tags: str) -> Iterable[Run]:
        """This study's runs with these tags, oldest first."""
        terms = [f"tags.`{name}` = {quoted(value)}" for name, value in {"study": self._study, **tags}.items()]
        terms += [f"attributes.status = '{status}'"] if status else []
        page: str | None = None
        while True:
            found = self._client.search_runs(
                [self._experiment], " and ".join(terms), order_by=["attributes.start_time ASC"], page_token=page
            )
            yield from found
            page = found.token
            if not page:
                return

    def _create(self, name: str, tags: Mapping[str, str], parent: str = "", start: int | None = None) -> Run:
        labels = {**self._labels, **tags, "mlflow.source.name": "colever"}
        if parent:
            labels[PARENT] = parent
        begun = start or _now()
        return create_once(
            self._client, self._experiment,
            lambda: self._client.create_run(self._experiment, start_time=begun, tags=labels, run_name=name), labels,
        )  # fmt: skip

    def _create_round(self, parent: Run, index: int, record: RoundRecord, reused: bool) -> Run:
        """A round that an earlier trial has logged is ``reused`` and took no time here."""
        reused = reused and any(self._search(kind="round", key=record.key))
        levers = [pulled.lever[0] for pulled in self._rounds[int(parent.data.tags["trial"])]]
        tags = {
            "kind": "round",
            "trial": parent.data.tags["trial"],
            "round": str(index + 1),
            "lever": record.lever,
            "after": along(levers[:index]),
            "key": record.key,
            "accepted": "yes" if record.accepted else "no",
            "reused": "yes" if reused else "no",
        }
        path = ",".join(levers[: index + 1])
        tags |= {COLOUR: COLOURS[path]} if path in COLOURS else {}
        start = _now() - (0 if reused else round(1000 * record.cost.seconds))
        return self._create(f"{index + 1}: {along(levers[: index + 1])}", tags, parent.info.run_id, start)

    def _set_aside(self, key: str) -> None:
        """Another study that had this name until its folder was deleted: its runs no longer count as this one's."""
        earlier = self._find(kind="study")
        if earlier is None or earlier.data.tags.get("key", "") == key:
            return
        name = f"{self._study} (earlier, {earlier.info.run_id[:6]})"
        self._close_running()
        for run in sorted(self._search(), key=lambda run: run.info.run_id == earlier.info.run_id):  # its own run last
            self._client.set_tag(run.info.run_id, "study", name)

    def _close_running(self, except_for: str = "") -> None:
        for run in list(self._search(status="RUNNING")):
            if run.info.run_id != except_for:
                self._client.set_terminated(run.info.run_id, "KILLED")

    # --- what is logged ---------------------------------------------------------------------------

    def _log_round(self, run: Run, record: RoundRecord) -> None:
        self._log(run.info.run_id, numbers.of_round(record), run.info.start_time)
        self._log_params(run, numbers.params_of({"lever": record.lever, **record.settings}))
        self._log_candidate(run.info.run_id, record.child)
        self._client.log_dict(run.info.run_id, dict(record.notes), "notes.json")

    def _log_used(self, run: Run, splits: Sequence[str]) -> None:
        """Which splits the run has read."""
        used = [split for split in self._splits if split.name in splits]
        log_inputs(self._client, run.info.run_id, self._labels["task"], used)

    def _log_rollouts(self, run: Run, record: RoundRecord, rollouts: Sequence[SampledRollout]) -> None:
        """As traces, written once: of a round that an earlier trial has logged, its traces."""
        if run.data.tags["reused"] == "yes":
            if rollouts and (first := self._find(kind="round", key=record.key, reused="no")) is not None:
                link_traces(self._uri, run, first)
            return
        tags = {"study": self._study, "split": "dev", "lever": record.lever}
        log_traces(self._uri, run, rollouts, tags | {"round": f"{run.data.tags['trial']}.{run.data.tags['round']}"})

    def _log_params(self, run: Run, params: Mapping[str, str]) -> None:
        """MLflow's parameters are for ever: one that has changed since (more trials, say) becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        changed = [RunTag(f"now.{key}", value) for key, value in params.items() if known.get(key, value) != value]
        if new or changed:
            self._client.log_batch(run.info.run_id, params=new, tags=changed)

    def _log(
        self,
        run_id: str,
        points: Iterable[numbers.Point] = (),
        timestamp: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Metrics, at most 1000 a batch as MLflow wants, then tags."""
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(key, value, timestamp, step) for key, step, value in points]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(key, value[:7900]) for key, value in tags.items()])

    def _log_candidate(self, run_id: str, candidate: Candidate, *, weights: bool = False) -> None:
        self._client.log_dict(run_id, candidate.to_json(), "candidate/candidate.json")
        path = candidate.weights.path
        if not weights or path is None or not Path(path).is_dir():
            return
        if size_of(Path(path)) <= SMALL_WEIGHTS:
            self._client.log_artifacts(run_id, path, "candidate/weights")

    def _log_figures(self, report: StudyReport) -> None:
        from colever.tracking.figures import save_all

        with tempfile.TemporaryDirectory() as folder:
            save_all(report, Path(folder))
            self._client.log_artifacts(self._study_run, folder, "figures")

    def _write_views(self, measure: str) -> None:
        for view in study_views(self._study, measure):
            for key, value in tags_of(view).items():
                self._client.set_experiment_tag(self._experiment, key, value)
        self._client.set_experiment_tag(self._experiment, "mlflow.experimentKind", "custom_model_development")


def _now() -> int:
    return round(1000 * time.time())
