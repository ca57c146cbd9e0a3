"""Way "instructions": the task's candidate wordings and nothing else. Needs no proposer."""

from __future__ import annotations

from dataclasses import replace

from colever.config import PromptSettings
from colever.errors import UsageError
from colever.optimizers.ways.choice import Choice
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate


class Instructions(Choice):
    """``choice`` without demos."""

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        if not any(task.instructions.values()):
            raise UsageError(
                f"prompt.way=instructions: task {task.name!r} offers no wordings (its field instructions); accepted "
                "without them: fewshot, knn, choice, or with a proposer mipro, gepa, simba, copro"
            )

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        return super().planned(_bare(settings), task, parent, rows)

    def search(self, pulling: Pulling) -> Found:
        return super().search(replace(pulling, settings=_bare(pulling.settings)))


def _bare(settings: PromptSettings) -> PromptSettings:
    return settings.model_copy(update={"demos": 0})


WAY = Instructions()
