"""Way "mipro": ``dspy.MIPROv2``, instructions that a proposer writes and sets of demos, by Bayesian search.

DSPy's class does the search. ``prompt.candidates`` is its number of instructions and of demo sets, ``prompt.screen``
its minibatch, ``prompt.examples`` its validation set, cut from train; the number of trials follows by its own rule.
"""

from __future__ import annotations

import dspy
from dspy.teleprompt import MIPROv2

from colever.config import LEAST_CANDIDATES, PromptSettings
from colever.errors import UsageError
from colever.optimizers.ways.bootstrap import ONE_ERROR, check_demos, student_of, teacher_of, threads_for
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate

FULL_EVERY = 5  # trials between its full evaluations
LEAST = LEAST_CANDIDATES["mipro"]


class Mipro:
    needs_proposer = True

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        if settings.candidates < LEAST:
            raise UsageError(f"prompt.way=mipro: prompt.candidates={settings.candidates}; accepted: {LEAST} or more")
        if settings.demos:
            check_demos(settings, "mipro", rows)

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        predictors, trials = len(parent.prompts), self._trials(settings, task)
        scored = len(rows.scored)
        full = (trials // FULL_EVERY + 3) * scored
        written = 15 + 3 * predictors * settings.candidates  # it reads the data, then the program for each instruction
        return Calls(len(rows.shown) + trials * min(settings.screen, scored) + full, written)

    def search(self, pulling: Pulling) -> Found:
        settings, rehearsal = pulling.settings, pulling.rehearsal
        optimizer = MIPROv2(
            metric=rehearsal.metric,
            prompt_model=pulling.proposer,
            task_model=dspy.settings.lm,
            auto=None,
            num_candidates=settings.candidates,
            max_bootstrapped_demos=settings.demos,
            max_labeled_demos=settings.demos,
            num_threads=threads_for(pulling),
            max_errors=ONE_ERROR,
            metric_threshold=settings.threshold,
            seed=pulling.seed + 1,  # MIPROv2 takes 0 for none
            init_temperature=pulling.proposer.kwargs.get("temperature", 1.0) if pulling.proposer else 1.0,
        )
        best = optimizer.compile(
            student_of(pulling),
            trainset=pulling.examples("shown"),
            teacher=teacher_of(pulling) if settings.demos else None,
            valset=pulling.examples("scored"),
            num_trials=self._trials(settings, pulling.task),
            minibatch=settings.screen < len(pulling.rows.scored),
            minibatch_size=min(settings.screen, len(pulling.rows.scored)),
            minibatch_full_eval_steps=FULL_EVERY,
        )
        full = best.candidate_programs
        tried = [
            {"what": f"fully scored {i + 1}", "screen": None, "final": c["score"] / 100} for i, c in enumerate(full)
        ]
        curve = [
            (number, float(log.get("mb_score", log.get("full_eval_score"))) / 100)
            for number, log in sorted(best.trial_logs.items())
            if "mb_score" in log or "full_eval_score" in log
        ]
        return Found(rehearsal.prompts_of(best), f"the best of {len(curve)} trials", tried, {"train/trial": curve})

    @staticmethod
    def _trials(settings: PromptSettings, task: Task) -> int:
        """DSPy's own rule."""
        import math

        variables = len(task.program().predictors()) * (2 if settings.demos else 1)
        return int(max(2 * variables * math.log2(settings.candidates), 1.5 * settings.candidates))


WAY = Mipro()
