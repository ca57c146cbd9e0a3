"""The tool calls of a rollout, as DSPy's agents show them: ``ReAct``, ``ReActV2``, predictors of ``dspy.ToolCalls``.

Read are a step's outputs ``next_tool_name`` and ``next_tool_args``, or ``tool_calls``, or those of the ``reply`` of an
agent that is not DSPy; where there are no steps, the prediction's ``trajectory``. Observations stand in ``trajectory``
or ``history``, or in such an agent's messages. A call that ends the run (``finish``, ``submit``) is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from colever.pipelines.plain import plain
from colever.types import Step

ENDS = ("finish", "submit")
_FAILED = "Execution error in "  # how ReAct begins the observation of a call that raised


@dataclass(frozen=True)
class Call:
    """One tool call as the model wrote it: either part may be of any type."""

    name: Any
    arguments: Any


def calls_of(prediction: dspy.Prediction, steps: Sequence[Step], predictor: str = "") -> list[Call]:
    """The calls of a rollout in order; with ``predictor`` of its steps alone."""
    mine = [step for step in steps if predictor in ("", step.predictor)]
    told = [call for step in mine for call in _of_outputs(step.outputs)]
    found = told if told or predictor else list(_of_trajectory(prediction))
    return [call for call in found if not (isinstance(call.name, str) and call.name in ENDS)]


def observations_of(prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> list[Any]:
    """What tools answered; calls that failed are left out."""
    sent = [message for step in steps for message in _messages(step.inputs)]
    if told := [message.get("content") for message in sent if message.get("role") == "tool"]:
        return told
    trajectory = prediction.get("trajectory")
    if isinstance(trajectory, Mapping):
        return [value for key, value in trajectory.items() if _tells(key, value, trajectory)]
    return list(_of_history(prediction.get("history")))


def _tells(key: Any, value: Any, trajectory: Mapping[str, Any]) -> bool:
    if not (isinstance(key, str) and key.startswith("observation_")):
        return False
    tool = trajectory.get(key.replace("observation", "tool_name"))
    ended = isinstance(tool, str) and tool in ENDS
    return not ended and not (isinstance(value, str) and value.startswith(_FAILED))


def _of_outputs(outputs: Mapping[str, Any]) -> Iterator[Call]:
    if "next_tool_name" in outputs:
        yield Call(outputs["next_tool_name"], outputs.get("next_tool_args"))
    calls = outputs.get("tool_calls")
    calls = calls.get("tool_calls") if isinstance(calls, Mapping) else calls
    for call in calls if isinstance(calls, list | tuple) else ():
        if isinstance(call, Mapping):
            yield Call(call.get("name"), call.get("args", call.get("arguments")))

    reply = outputs.get("reply")
    said = reply.get("tool_calls") if isinstance(reply, Mapping) else None
    for call in said if isinstance(said, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield Call(function.get("name"), function.get("arguments"))


def _messages(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a request of an agent that is not DSPy."""
    messages = inputs.get("messages")
    return [m for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []


def _of_trajectory(prediction: dspy.Prediction) -> Iterator[Call]:
    trajectory = prediction.get("trajectory")
    if isinstance(trajectory, Mapping):
        for key, name in trajectory.items():
            if isinstance(key, str) and key.startswith("tool_name_"):
                yield Call(name, trajectory.get(key.replace("name", "args")))


def _of_history(history: Any) -> Iterator[Any]:
    messages = getattr(history, "messages", None)
    for message in messages if isinstance(messages, list) else ():
        try:
            calls = plain(message.get("tool_calls")) if isinstance(message, Mapping) else None
        except RecursionError:
            continue
        results = calls.get("tool_call_results") if isinstance(calls, Mapping) else None
        results = results.get("tool_call_results") if isinstance(results, Mapping) else results
        for result in results if isinstance(results, list) else ():
            if not result.get("is_error") and result.get("name") not in ENDS:
                yield result.get("value")
