"""Way "simba": ``dspy.SIMBA``, demos and rules that a proposer writes, out of rollouts that went well and badly.

DSPy's class does the search: ``prompt.screen`` is its minibatch, ``prompt.steps`` its steps, and half of
``prompt.candidates`` its candidates of each. Its final choice is on all train examples of the pull.
"""

from __future__ import annotations

from dspy.teleprompt import SIMBA

from colever.config import LEAST_CANDIDATES, PromptSettings
from colever.errors import UsageError
from colever.optimizers.rehearsal import THREADS
from colever.optimizers.ways.bootstrap import student_of
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate


class Simba:
    needs_proposer = True

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        if settings.candidates < (least := LEAST_CANDIDATES["simba"]):
            raise UsageError(f"prompt.way=simba: prompt.candidates={settings.candidates}; accepted: {least} or more")
        if len(rows.scored) < 2:
            raise UsageError("prompt.way=simba: fewer than 2 train examples to learn from; accepted: more of them")

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        k, batch = settings.candidates // 2, self._batch(settings, rows)
        return Calls(settings.steps * batch * (2 * k + 1) + (k + 2) * len(rows.scored), settings.steps * (k + 1))

    def search(self, pulling: Pulling) -> Found:
        settings, rehearsal = pulling.settings, pulling.rehearsal
        optimizer = SIMBA(
            metric=rehearsal.metric_with_feedback,
            bsize=self._batch(settings, pulling.rows),
            num_candidates=settings.candidates // 2,
            max_steps=settings.steps,
            max_demos=settings.demos,
            prompt_model=pulling.proposer,
            num_threads=THREADS,
        )
        best = optimizer.compile(student_of(pulling), trainset=pulling.examples("scored"), seed=pulling.seed)
        found = best.candidate_programs
        return Found(
            rehearsal.prompts_of(best),
            f"the best of {len(found)} programs",
            [{"what": f"program {i + 1}", "screen": None, "final": c["score"]} for i, c in enumerate(found)],
            {"train/final": [(i, c["score"]) for i, c in enumerate(reversed(found))]},
        )

    @staticmethod
    def _batch(settings: PromptSettings, rows: TrainRows) -> int:
        return min(settings.screen, len(rows.scored))


WAY = Simba()
