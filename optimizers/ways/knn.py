"""Way "knn": demos chosen call by call, those whose inputs are most like the call's own. Needs no proposer.

``dspy.KNNFewShot`` runs ``BootstrapFewShot`` on the neighbours anew at every call, and what it makes cannot be saved.
Here the pool is bootstrapped once, by DSPy's class, and saved with the candidate; at a call ``dspy.KNN`` looks the
neighbours up in it (``pipelines/nearest.py``). How many are shown, and of which pool, is compared on train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShot, LabeledFewShot

from colever.config import PromptSettings
from colever.optimizers.ways.bootstrap import ONE_ERROR, check_demos, student_of, teacher_of
from colever.optimizers.ways.choice import sizes
from colever.optimizers.ways.way import Calls, Found, Prompts, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt

Pool = Mapping[str, Sequence[Mapping[str, Any]]]


class NearestDemos:
    needs_proposer = False

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        check_demos(settings, "knn", rows)

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        return Calls(len(rows.shown) + (1 + 3 * len(sizes(settings.demos))) * len(rows.scored))

    def search(self, pulling: Pulling) -> Found:
        tried: list[tuple[str, Prompts]] = [("as it was", pulling.parent.prompts)]
        for source, pool in self._pools(pulling).items():
            for k in sizes(pulling.settings.demos):
                tried.append((f"the {k} nearest of the {source} demos", _showing(pulling.parent.prompts, pool, k)))
        pulling.rehearsal.run_all([prompts for _, prompts in tried], pulling.scored)
        scores = [pulling.rehearsal.mean(prompts, pulling.scored) for _, prompts in tried]
        best = scores.index(max(scores))
        return Found(
            tried[best][1],
            tried[best][0],
            [{"what": w, "screen": None, "final": s} for (w, _), s in zip(tried, scores, strict=True)],
            {"train/final": list(enumerate(scores))},
        )

    @staticmethod
    def _pools(pulling: Pulling) -> dict[str, Pool]:
        """The examples as they are, those that the teacher answered well as it answered them, and both, as DSPy has it.

        An example that lacks some of a predictor's fields is a demo without them, where it has an input and an output.
        """
        shown, teacher = pulling.examples("shown"), teacher_of(pulling)
        whole = len(shown)

        def bootstrapped(labelled: int) -> dspy.Module:
            optimizer = BootstrapFewShot(
                metric=pulling.rehearsal.metric,
                metric_threshold=pulling.settings.threshold,
                max_bootstrapped_demos=whole,
                max_labeled_demos=labelled,
                max_errors=ONE_ERROR,
            )
            return optimizer.compile(student_of(pulling), teacher=teacher, trainset=shown)

        made = {
            "labelled": LabeledFewShot(k=whole).compile(student_of(pulling).reset_copy(), trainset=shown),
            "bootstrapped": bootstrapped(0),
            "bootstrapped and labelled": bootstrapped(whole),
        }
        pools: dict[str, Pool] = {}
        for source, program in made.items():
            pool = {name: p.demos for name, p in pulling.rehearsal.prompts_of(program).items()}
            if any(pool.values()) and pool not in pools.values():
                pools[source] = pool
        return pools


def _showing(prompts: Prompts, pool: Pool, k: int) -> Prompts:
    return {
        name: PredictorPrompt(p.instructions, tuple(pool[name]), k) if pool.get(name) else p
        for name, p in prompts.items()
    }


WAY = NearestDemos()
