"""Way "fewshot": ``dspy.BootstrapFewShotWithRandomSearch``, labelled and bootstrapped demos by random search.

Needs no proposer. DSPy's class does the search; it competes on train examples that no demo is made of, and its teacher
is asked once for all of its random sets.
"""

from __future__ import annotations

from dspy.teleprompt import BootstrapFewShotWithRandomSearch

from colever.config import PromptSettings
from colever.optimizers.ways.bootstrap import ONE_ERROR, check_demos, student_of, teacher_of, threads_for
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate


class FewShot:
    needs_proposer = False

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        check_demos(settings, "fewshot", rows)

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """The teacher once; no demos, labelled ones, bootstrapped ones in order, the random sets, and the parent."""
        return Calls(len(rows.shown) + (settings.candidates + 4) * len(rows.scored))

    def search(self, pulling: Pulling) -> Found:
        settings = pulling.settings
        optimizer = BootstrapFewShotWithRandomSearch(
            metric=pulling.rehearsal.metric,
            max_bootstrapped_demos=settings.demos,
            max_labeled_demos=settings.demos,
            num_candidate_programs=settings.candidates,
            num_threads=threads_for(pulling),
            max_errors=ONE_ERROR,
            metric_threshold=settings.threshold,
        )
        best = optimizer.compile(
            student_of(pulling),
            teacher=teacher_of(pulling),
            trainset=pulling.examples("shown"),
            valset=pulling.examples("scored"),
        )
        sets = sorted(best.candidate_programs, key=lambda c: c["seed"])
        words = {-3: "no demos", -2: "labelled demos", -1: "bootstrapped demos, in order"}
        tried = [
            {"what": words.get(c["seed"], f"random set {c['seed'] + 1}"), "screen": None, "final": c["score"] / 100}
            for c in sets
        ]
        chosen = max(range(len(sets)), key=lambda i: sets[i]["score"])
        return Found(
            pulling.rehearsal.prompts_of(best),
            str(tried[chosen]["what"]),
            tried,
            {"train/final": [(i, c["score"] / 100) for i, c in enumerate(sets)]},
        )


WAY = FewShot()
