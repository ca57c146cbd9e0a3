"""A task set of ``verifiers`` (v1, release 0.4) as a task: one call, graded by verifiers' own scoring.

Departures from verifiers' runs: the model is asked by DSPy's adapter and without tools (verifiers' default harness is
a shell agent); the system prompt is the predictor's instruction, which the prompt lever may change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dspy

from colever.errors import TaskError
from colever.tasks.data import drawn
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Gold, Task
from colever.tasks.verifiers_fit import asked, library, read_tasks, taskset_of
from colever.tasks.verifiers_score import Scorer, reward_value

SIZES = 256, 256, 512  # train, dev, test


def from_verifiers(
    environment: Any,
    *,
    test: Any = None,
    config: Mapping[str, Any] | None = None,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 8,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    gold: str | Gold | None = None,
    instruction: str | None = None,
    reply: Callable[[Any], str] | None = None,
) -> Task:
    """A task whose program is one predictor, ``prompt -> reply``, and whose criteria are verifiers' rewards.

    ``environment``: a ``Taskset``, a ``SingleAgentEnv``, or the id of an installed one with the settings ``config``.
    Its rows, those that ask the same counted once, are cut by ``seed`` into ``sizes`` (smaller ones, in proportion,
    where there are not so many); ``test``, another task set, gives the test rows instead.

    ``ranges``: of a reward that leaves [0, 1] its (worst, best) value; worst > best where its weight is negative. A
    criterion's weight is ``weight * (best - worst)``, so that the score ranks replies as the sum of the rewards does.
    A metric becomes a watched criterion where ``ranges`` has it. ``gold``: a function, or one of these by name.
    ``instruction`` stands in for the rows' system prompt; ``reply`` makes a right reply of a row's data, for demos and
    ``colever rubric check``. Raises TaskError for what cannot be carried over.
    """
    taskset = taskset_of(environment, config)
    own, seen = _rows("", read_tasks(taskset, sum(sizes)), set())
    held, _ = _rows("test-", [] if test is None else read_tasks(taskset_of(test), sizes[2]), seen)
    tasks = own | held
    criteria = _criteria(Scorer(tasks), next(iter(own.values())), dict(ranges or {}))
    checks = {c.name: c.check for c in criteria}
    if isinstance(gold, str) and gold not in checks:
        raise TaskError(f"verifiers: gold {gold!r}; accepted: a function, or one of {', '.join(checks)}")
    parts = drawn(list(own), sizes, seed) if test is None else drawn(list(own), sizes[:2], seed)
    parts += [] if test is None else drawn(list(held), sizes[2:], seed)
    train, dev, tested = ([_example(name, tasks[name], reply) for name in part] for part in parts)
    name = taskset.config.name.rpartition("/")[2] or type(taskset).__name__
    return Task(
        name=name,
        program=functools.partial(answering, _instruction(tasks.values()) if instruction is None else instruction),
        train=train,
        dev=dev,
        test=tested,
        rubric=Rubric(criteria),
        gold=checks[gold] if isinstance(gold, str) else gold,  # type: ignore[arg-type]
        max_tokens=512,
        origin=f"verifiers, {name}",
    )


def answering(instruction: str | None) -> dspy.Module:
    """One call; DSPy's own instruction where there is none."""
    return dspy.Predict(dspy.Signature("prompt: str -> reply: str", instruction))


def _rows(prefix: str, tasks: Sequence[Any], seen: set[str]) -> tuple[dict[str, Any], set[str]]:
    """Tasks by example id, without those whose question is in ``seen``; and all questions."""
    new: dict[str, Any] = {}
    for task in tasks:
        new.setdefault(asked(task.data)[1].strip(), task)
    return {f"{prefix}{t.data.idx}": t for q, t in new.items() if q not in seen}, seen | set(new)


def _instruction(tasks: Iterable[Any]) -> str | None:
    system = {asked(task.data)[0] for task in tasks}
    if len(system) > 1:
        raise TaskError(f"verifiers: the rows have {len(system)} system prompts; accepted: one for all, or instruction")
    return system.pop()


def _example(name: str, task: Any, reply: Callable[[Any], str] | None) -> dspy.Example:
    """The row's own fields as verifiers writes them, the question, and the right reply where it is known."""
    own = set(type(task.data).model_fields) - set(library().TaskData.model_fields)
    fields = {**task.data.model_dump(mode="json", include=own), "id": name, "prompt": asked(task.data)[1]}
    return dspy.Example(**fields, **({} if reply is None else {"reply": reply(task.data)})).with_inputs("prompt")


def _criteria(scorer: Scorer, task: Any, ranges: dict[str, tuple[float, float]]) -> list[Criterion]:
    """One of each reward, and of each metric with a range. Raises TaskError for a range that does not fit."""
    found: list[Criterion] = []
    rewards, metrics = task.hooks("reward"), task.hooks("metric")
    if not rewards:
        raise TaskError(f"verifiers: {type(task).__name__} has no rewards; accepted: at least one @verifiers.v1.reward")
    names = [hook.__name__ for hook in (*rewards, *metrics)]
    if unknown := sorted(set(ranges) - set(names)):
        raise TaskError(f"verifiers: a range for {unknown[0]!r}; accepted: {', '.join(names)}")
    for hook in (*rewards, *(hook for hook in metrics if hook.__name__ in ranges)):
        worst, best = ranges.get(hook.__name__, (0.0, 1.0))
        weight = getattr(hook, "_vf_weight", 1.0) if hook in rewards else 0.0
        if worst == best or weight * (best - worst) < 0:
            raise TaskError(
                f"verifiers: {hook.__name__} has weight {weight} and goes from worst {worst} to best {best}; accepted: "
                f"ranges={{{hook.__name__!r}: (worst, best)}}, with worst above best where the weight is negative"
            )
        check = functools.partial(reward_value, scorer, hook, worst, best)
        found.append(Criterion(hook.__name__, check, abs(weight * (best - worst))))
    return found
