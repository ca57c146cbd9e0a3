"""Candidates' prompts in MLflow's prompt registry: one registered prompt for each predictor of a task.

A version is one text (instruction and demos): an equal prompt, of whichever round or study of the home, is the version
that is there, found by its digest. Tags say where it was first seen: the candidate, the version that it was made from,
study, trial, round, lever, way, dev score, and whether the round was kept. Knows MLflow and records; no tasks.

MLflow's own ``link_prompt_version_to_run`` writes to the process's global store; the tag that it sets is set here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from colever.locks import locks_of
from colever.prompt_notes import PromptNotes
from colever.reported import StudyReport
from colever.samples import cut, encodable
from colever.tracking.prompt_text import diff_text, in_markdown, prompt_text
from colever.tracking.prompts import round_text
from colever.tracking.registry import model_name
from colever.tracking.report import winning_trial
from colever.tracking.view import quoted
from colever.types import Candidate, PredictorPrompt, RoundRecord, digest_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LINKED = "mlflow.linkedPrompts"  # of a run: what the UI lists as its prompts
_IS_PROMPT = "mlflow.prompt.is_prompt"
_EXPERIMENTS = "_mlflow_experiment_ids"  # of a prompt: in which experiments the UI lists it
MOST = 99_000  # characters of a text that are kept; MLflow takes 100,000
_SAID = 1000  # characters of a version's description
Versions = dict[str, tuple[str, int]]  # predictor -> registered prompt and version


class PromptRegistry:
    """The prompts of one study's task. Raises what MLflow's store raises."""

    def __init__(self, client: MlflowClient, home: Path, study: str, task: str, experiment: str) -> None:
        self._client, self._study, self._task, self._experiment = client, study, task, experiment
        self._lock = locks_of(home).lock("prompts.lock")  # two workers would make two versions of one text
        self._names: dict[str, str] = {}  # of predictors
        self._known: dict[tuple[str, str], int] = {}  # registered prompt and digest -> version

    def log_round(self, run: Run, record: RoundRecord, base_run: str = "") -> None:
        """The child's prompts as versions that the round's run lists; of a prompt round, text and diff as its files.

        ``base_run`` lists what the first round started from.
        """
        trial, place, run_id = run.data.tags["trial"], int(run.data.tags["round"]), run.info.run_id
        parent, child = self._of_round(trial, place, record)
        self._link(run_id, child)
        if place == 1 and base_run:
            self._link(base_run, parent)
        if record.lever == "prompt":
            before, after = record.parent.prompts, record.child.prompts
            text = in_markdown(after, record.after.prompt_tokens, record.before.prompt_tokens)
            self._client.log_text(run_id, diff_text(before, after, ("parent", f"{trial}.{place}")), "prompts.diff")
            self._client.log_text(run_id, text, "prompts.md")

    def log_winner(self, study_run: str, report: StudyReport) -> None:
        """The study's run lists the winner's versions, which get the alias ``winner-<study>``.

        An earlier winner's lose it. A study that was begun before there were versions gets them now.
        """
        alias, found = "winner-" + re.sub(r"[^\w-]", "-", self._study)[:200], Versions()
        for place, record in enumerate(report.path, 1):
            parent, child = self._of_round(str(winning_trial(report)), place, record)
            found = child if record.accepted else parent
        for name, version in found.values():
            self._client.set_prompt_alias(name, alias, version)
        self._link(study_run, found)

    def _of_round(self, trial: str, place: int, record: RoundRecord) -> tuple[Versions, Versions]:
        """The versions of a round's parent and of its child; those that are not there are made."""
        parent = self._of_parent(trial, place, record)
        said = {
            "trial": trial, "round": f"{trial}.{place}", "lever": record.lever, "way": PromptNotes.of(record).way,
            "dev_score": f"{record.after.score:.4f}", "accepted": "yes" if record.accepted else "no",
        }  # fmt: skip
        return parent, self._versions(record.child, said, f"{trial}.{place}: {round_text(record)}", parent)

    def _link(self, run_id: str, versions: Versions) -> None:
        """The run's page lists these versions, and no other."""
        linked = [{"name": name, "version": str(version)} for name, version in versions.values()]
        self._client.set_tag(run_id, LINKED, json.dumps(linked))

    def _of_parent(self, trial: str, place: int, record: RoundRecord) -> Versions:
        """The base's at the first round; later ones are there, unless the study began before there were versions."""
        seen = "base" if place == 1 else f"before {trial}.{place}"
        return self._versions(record.parent, {"round": seen, "dev_score": f"{record.before.score:.4f}"}, seen, {})

    def _versions(self, candidate: Candidate, said: Mapping[str, str], words: str, parent: Versions) -> Versions:
        found = {}
        for predictor, prompt in candidate.prompts.items():
            name, digest = self._name(predictor), digest_of(prompt.to_json())
            if (name, digest) not in self._known:
                before = str(parent[predictor][1]) if predictor in parent else ""
                tags = {"digest": digest, "candidate": candidate.digest, "study": self._study, "predictor": predictor}
                tags |= {key: value for key, value in {**said, "parent_version": before}.items() if value}
                self._known[name, digest] = self._version(name, prompt, tags, words)
            found[predictor] = name, self._known[name, digest]
        return found

    def _version(self, name: str, prompt: PredictorPrompt, tags: Mapping[str, str], words: str) -> int:
        """The one with this digest; made if there is none."""
        query = f"name = {quoted(name)} AND tags.`{_IS_PROMPT}` = 'true' AND tags.digest = '{tags['digest']}'"
        with self._lock:
            if there := self._client.search_model_versions(query):
                return min(int(version.version) for version in there)
            made = self._client.create_prompt_version(
                name, cut(prompt_text(prompt), MOST), encodable(words)[:_SAID], tags
            )
        return int(made.version)

    def _name(self, predictor: str) -> str:
        """``arithmetic.solve``, as MLflow takes it; made if it is not there."""
        if predictor not in self._names:
            name = re.sub(r"[^a-zA-Z0-9_.-]", "-", f"{model_name(self._task)}.{predictor}")[:200]
            with self._lock:
                self._names[predictor] = self._ensure(name, predictor)
        return self._names[predictor]

    def _ensure(self, name: str, predictor: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_prompt(name)
        if found is None:
            tags = {"task": self._task, "predictor": predictor, _EXPERIMENTS: f",{self._experiment},"}
            try:
                self._client.create_prompt(name, f"Prompts of {predictor} of the task {self._task}.", tags)
            except MlflowException:
                if name.endswith("-prompt"):
                    raise
                return self._ensure(f"{name}-prompt", predictor)  # a registered model has that name
        elif f",{self._experiment}," not in (listed := found.tags.get(_EXPERIMENTS, ",")):
            self._client.set_prompt_tag(name, _EXPERIMENTS, f"{listed}{self._experiment},")
        return name
