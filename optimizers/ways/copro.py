"""Way "copro": ``dspy.COPRO``, coordinate ascent over instructions that a proposer writes.

DSPy's class does the search: ``prompt.candidates`` is its breadth, ``prompt.steps`` its depth. It also proposes
prefixes of output fields, which DSPy's chat format does not show: they are no part of a candidate.
"""

from __future__ import annotations

from dspy.teleprompt import COPRO

from colever.config import LEAST_CANDIDATES, PromptSettings
from colever.errors import UsageError
from colever.optimizers.ways.bootstrap import threads_for
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate


class Copro:
    needs_proposer = True

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        if settings.candidates < (least := LEAST_CANDIDATES["copro"]):
            raise UsageError(f"prompt.way=copro: prompt.candidates={settings.candidates}; accepted: {least} or more")

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """With several predictors each step scores all earlier instructions again, beside the others' new ones."""
        predictors, k, depth = len(parent.prompts), settings.candidates, settings.steps
        scored = sum(k * (step if predictors > 1 else 1) for step in range(1, depth + 1)) * predictors
        return Calls((scored + 1) * len(rows.scored), predictors * depth * k)

    def search(self, pulling: Pulling) -> Found:
        settings, rehearsal = pulling.settings, pulling.rehearsal
        optimizer = COPRO(
            prompt_model=pulling.proposer,
            metric=rehearsal.metric,
            breadth=settings.candidates,
            depth=settings.steps,
            init_temperature=pulling.proposer.kwargs.get("temperature", 1.0) if pulling.proposer else 1.0,
        )
        best = optimizer.compile(
            rehearsal.student(),
            trainset=pulling.examples("scored"),
            eval_kwargs={
                "num_threads": threads_for(pulling),
                "display_progress": False,
                "display_table": 0,
            },
        )
        found = best.candidate_programs
        return Found(
            rehearsal.prompts_of(best),
            found[0]["instruction"],
            [{"what": c["instruction"], "screen": None, "final": c["score"] / 100} for c in found],
            {"train/final": [(i, c["score"] / 100) for i, c in enumerate(reversed(found))]},
        )


WAY = Copro()
