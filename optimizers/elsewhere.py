"""What trained weights do to other tasks: each on its dev split, with its own prompts, before and after.

Forgetting is measured on dev, so that the other tasks' test stays unread. Reads no gold but to report it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colever.errors import ColeverError, UsageError
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.statistics import paired_effect
from colever.optimizers.study import Other, StudyFolder, StudyState, same_task
from colever.reported import Elsewhere
from colever.tasks.judges import with_judge
from colever.tasks.load import BUNDLED, load_task
from colever.types import Candidate, Cost, Evaluation, Weights

if TYPE_CHECKING:
    from colever.config import SweepConfig
    from colever.optimizers.lever import Progress
    from colever.tasks.task import Task

Weighted = Mapping[str, Weights]  # arm -> the weights that it ended with


def other_tasks(config: SweepConfig) -> list[Task]:
    """The tasks that the setting ``elsewhere`` names (``gsm8k=rows.jsonl``: on these rows), this one left out.

    Raises UsageError if one cannot be loaded, or two have one name.
    """
    entries = config.elsewhere
    if entries is None:
        entries = tuple(BUNDLED) if config.task in BUNDLED else ()
    named = [(name, rows) for name, _, rows in (entry.partition("=") for entry in entries)]
    others = [(name, rows) for name, rows in named if not same_task(name, config.task)]
    found = [with_judge(_loaded(name, rows), config.judge.model) for name, rows in others]
    twice = [name for name, count in Counter(task.name for task in found).items() if count > 1]
    if twice:
        raise UsageError(f"elsewhere: two tasks are called {twice[0]!r}; accepted: each name once")
    return found


def _loaded(name: str, rows: str) -> Task:
    """What is said of the flag ``--data``, which was not given, is said of the setting."""
    try:
        return load_task(name, rows or None)
    except ColeverError as error:
        text = str(error).replace("--data PATH", f"{name}=PATH").replace("--data ", f"{name}=")
        raise UsageError(f"elsewhere: {text}") from error


def trained(candidates: Mapping[str, Candidate]) -> dict[str, Weights]:
    """The arms whose weights are not the model's own."""
    return {arm: c.weights for arm, c in candidates.items() if c.weights.kind != "base"}


def read_elsewhere(tasks: Sequence[Task], evaluator: Evaluator, weights: Weighted, progress: Progress) -> list[str]:
    """Score each task under the model's own weights and under each of these; what could not be scored, in words.

    Weights that belong to one program's predictors answer for no other program.
    """
    notes = []
    for task in tasks if weights else ():
        there = Evaluator.of(task, evaluator.engine, evaluator.store, evaluator.seed)
        for arm, at in {"base": Weights(), **weights}.items():
            told = _told(progress, f"{task.name} under the weights of {arm}", len(task.dev))
            try:
                there(replace(task.base_candidate(), weights=at), on_done=told)
            except ColeverError as error:
                notes.append(f"{task.name} was not scored under the weights of {arm}: {error}.")
    return notes


def others_of(tasks: Sequence[Task]) -> dict[str, Other]:
    """What a report needs of these tasks to find their stored scores."""
    return {task.name: Other(task.digest(), task.base_candidate()) for task in tasks}


def elsewhere(folder: StudyFolder, state: StudyState, weights: Weighted) -> tuple[list[Elsewhere], Cost]:
    """How the weights changed the other tasks' scores, and what reading them cost."""
    found, costs = [], dict[tuple[str, str], Cost]()
    for name, other in state.elsewhere.items():
        stored = folder.evaluations(state, replace(state.grounds, task=other.digest))
        before = stored(other.base, "dev")
        for arm, at in weights.items():
            after = stored(replace(other.base, weights=at), "dev")
            if before is not None and after is not None and (made := _compared(name, arm, before, after)):
                found.append(made)
                costs |= {(name, "base"): before.cost, (name, at.digest): after.cost}
    return found, sum(costs.values(), Cost())


def _compared(name: str, arm: str, before: Evaluation, after: Evaluation) -> Elsewhere | None:
    """Over the examples that were scored both times."""
    gold = before.gold is not None and after.gold is not None
    values = zip(*((e.golds if gold else e.scores) for e in (before, after)), strict=True)
    pairs = [(one, other) for one, other in values if one is not None and other is not None]
    olds, news = [one for one, _ in pairs], [other for _, other in pairs]
    change = paired_effect([(1, news), (-1, olds)]) if pairs else None
    if change is None:
        return None
    return Elsewhere(name, arm, sum(olds) / len(pairs), sum(news) / len(pairs), change, len(pairs))


def _told(progress: Progress, text: str, total: int) -> Callable[[int], None]:
    return lambda done: progress.update(done, total, text)
