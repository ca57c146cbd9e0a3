"""Way "knn": demos chosen call by call, those whose inputs are most like the call's own. Needs no proposer.

``dspy.KNNFewShot`` runs ``BootstrapFewShot`` on the neighbours anew at every call, and what it makes cannot be saved.
Here the pool is bootstrapped once, by DSPy's class, and saved with the candidate; at a call ``dspy.KNN`` looks the
neighbours up in it (``pipelines/nearest.py``). How many are shown, and of which pool, is compared on train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspy.teleprompt import BootstrapFewShot

from colever.config import PromptSettings
from colever.optimizers.demos import labelled_demos
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
        return Calls(len(rows.shown) + (1 + 2 * len(sizes(settings.demos))) * len(rows.scored))

    def search(self, pulling: Pulling) -> Found:
        tried: list[tuple[str, Prompts]] = [("as it was", pulling.parent.prompts)]
        for source, pool in self._pools(pulling).items():
            for k in sizes(pulling.settings.demos):
                tried.append((f"the {k} nearest of the {source} demos", _showing(pulling.parent.prompts, pool, k)))
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
        """Every labelled demo that is complete, and every one that the teacher's good rollouts make."""
        shown, rehearsal = pulling.examples("shown"), pulling.rehearsal
        optimizer = BootstrapFewShot(
            metric=rehearsal.metric,
            metric_threshold=pulling.settings.threshold,
            max_bootstrapped_demos=len(shown),
            max_labeled_demos=0,
            max_errors=ONE_ERROR,
        )
        made = optimizer.compile(student_of(pulling), teacher=teacher_of(pulling), trainset=shown)
        pools: dict[str, Pool] = {
            "labelled": labelled_demos(pulling.task.program(), shown),
            "bootstrapped": {name: p.demos for name, p in rehearsal.prompts_of(made).items()},
        }
        return {source: pool for source, pool in pools.items() if any(pool.values())}


def _showing(prompts: Prompts, pool: Pool, k: int) -> Prompts:
    return {
        name: PredictorPrompt(p.instructions, tuple(pool[name]), k) if pool.get(name) else p
        for name, p in prompts.items()
    }


WAY = NearestDemos()
