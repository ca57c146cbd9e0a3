"""A reply's rewards and metrics by the scoring of ``verifiers`` (v1, release 0.4) itself, as values of criteria.

Knows no splits and no programs. The trace that is scored has the row's own system prompt, its question, and the parsed
field ``reply`` as the model's answer; it has no tokens.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from colever.errors import InfrastructureError, TaskError
from colever.tasks.criteria.fields import last_call, shown
from colever.tasks.verifiers_fit import asked, library
from colever.types import Step


def reward_value(
    scorer: Scorer, hook: Any, worst: float, best: float,
    example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = (),
) -> float:  # fmt: skip
    """What verifiers' scoring gives by the reward or metric ``hook``, brought from worst and best to 0 and 1.

    The hook itself is not called here: its code is part of the task's digest because it is handed over.
    """
    value = scorer(example, prediction, steps, hook.__name__)
    if not min(worst, best) <= value <= max(worst, best):
        raise TaskError(
            f"verifiers: {hook.__name__} gave {value}; accepted: {worst:g} to {best:g}, or "
            f"ranges={{{hook.__name__!r}: (worst, best)}}"
        )
    return (value - worst) / (best - worst)


_LAST = threading.local()  # a rollout's criteria are asked one after another in one thread: scored once for all


class Scorer:
    """verifiers' own scoring of a reply."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self.tasks = tasks

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step], name: str) -> float:
        key, call = (self, str(example["id"]), shown(prediction["reply"]) or ""), last_call(steps)
        finish = call.completion.finish_reason if call is not None else None  # gold is handed no steps
        if getattr(_LAST, "key", None) != key or finish not in (None, _LAST.finish):
            _LAST.values = self._values(*key[1:], finish or "stop")
            _LAST.key, _LAST.finish = key, finish
        if (value := _LAST.values.get(name)) is None:
            raise TaskError(
                f"verifiers: {name} gave no number of its own, but {', '.join(_LAST.values)}; accepted: one"
            )
        return float(value)

    def _values(self, row: str, reply: str, finish: str) -> dict[str, float | None]:
        vf = library()
        if row not in self.tasks:
            raise TaskError(f"verifiers: no row {row!r}; accepted: examples of this task")
        task = self.tasks[row]
        trace = _trace(vf, task, reply, finish)
        try:
            asyncio.run(asyncio.wait_for(task.score(trace), task.data.timeout.scoring))
        except vf.TaskError as error:
            raise TaskError(f"verifiers: {error}") from error
        except vf.RolloutError as error:
            raise InfrastructureError(f"verifiers: {type(error).__name__}: {error}") from error
        if trace.extra_usage or trace.info.get("judge_calls"):
            raise TaskError(f"verifiers: {type(task).__name__} asks a judge; accepted: rewards that ask no model")
        rewards = {name: None if reward is None else reward.score for name, reward in trace.rewards.items()}
        return {**trace.metrics, **rewards}


def _trace(vf: Any, task: Any, reply: str, finish: str) -> Any:
    """The trace that verifiers would have of one call, without tokens."""
    from verifiers.v1.graph import prepare_turn
    from verifiers.v1.state import state_cls

    about = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    state = state_cls(type(task))()
    trace = vf.Trace(task=about, state=state, agent=vf.AgentInfo(config=vf.AgentConfig()), ok=True)
    system, prompt = asked(task.data)
    said = vf.Response(
        id="", created=0, model="", message=vf.AssistantMessage(content=reply), finish_reason=finish,
    )  # fmt: skip
    messages = [vf.SystemMessage(content=system)] if system is not None else []
    node = prepare_turn(trace, [*messages, vf.UserMessage(content=prompt)]).commit(said)
    trace.calls.append(vf.ModelCall(node=node, finish_reason=finish))
    trace.stop("agent_completed")
    return trace
