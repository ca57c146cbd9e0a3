"""Criteria of how an agent uses its tools: ``called``, ``arguments_valid``, ``result_used``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from colever.tasks.criteria.fields import clipped, read, read_text, shown
from colever.tasks.criteria.json_text import NOTHING, checked_schema, follows, parse
from colever.tasks.criteria.settings import in_unit, not_empty, not_negative, refuse, settle
from colever.tasks.criteria.tool_calls import Call, calls_of, observations_of
from colever.tasks.criteria.wording import normal_form
from colever.types import Step


@dataclass(frozen=True)
class Called:
    """1 where ``tool`` (any, unless said) was called at least ``least`` and at most ``most`` times (0: no limit).

    Fewer calls are worth their share of ``least``, more are worth ``most`` by their number; with ``most`` alone and
    ``least`` 0 a run without calls is 1. Calls are read of DSPy's ``ReAct``, ``ReActV2``, fields of ``dspy.ToolCalls``
    and agents that are not DSPy; those that end the run are not counted.

    Range: [0, 1]. Reads: the steps' tool calls, or the prediction's trajectory. Cost: none.
    """

    tool: str = ""
    least: int = 1
    most: int = 0
    predictor: str = ""

    def __post_init__(self) -> None:
        settle(self)
        not_negative(self, "least")
        if self.most and self.most < max(1, self.least):
            refuse(self, "most", f"0 for no limit, or at least {max(1, self.least)}")
        if not self.most and not self.least:
            refuse(self, "least", "at least 1 where there is no most")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        names = [call.name for call in calls_of(prediction, steps, self.predictor) if isinstance(call.name, str)]
        count = sum(name == self.tool for name in names) if self.tool else len(names)
        if count < self.least:
            return count / self.least
        return clipped(self.most / count) if self.most and count > self.most else 1.0


@dataclass(frozen=True)
class ArgumentsValid:
    """The share of the tool calls whose tool exists and whose arguments are as it wants them.

    ``tools`` is JSON text: each tool's name with the JSON schema of its arguments, or a list of the names of those that
    it needs: ``{"search": ["query"], "add": {"properties": {"a": {"type": "number"}}, "required": ["a"]}}``. With
    ``predictor``, a call of it that could not be parsed counts as one that is not valid. ``empty``: what a run
    without calls is worth.

    Range: [0, 1]. Reads: the steps' tool calls, or the prediction's trajectory. Cost: none.
    """

    tools: str
    predictor: str = ""
    empty: float = 0.0

    def __post_init__(self) -> None:
        settle(self)
        in_unit(self, "empty")
        try:
            _schemas(self.tools)
        except ValueError as error:
            refuse(self, "tools", f'JSON text such as {{"search": ["query"]}} ({error})')

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        held = [self._valid(call) for call in calls_of(prediction, steps, self.predictor)]
        held += [False for step in steps if self.predictor and step.predictor == self.predictor and step.failed]
        return sum(held) / len(held) if held else self.empty

    def _valid(self, call: Call) -> bool:
        schemas = _schemas(self.tools)
        arguments = parse(call.arguments) if isinstance(call.arguments, str) else call.arguments
        known = isinstance(call.name, str) and call.name in schemas
        return known and isinstance(arguments, Mapping) and follows(dict(arguments), schemas[call.name])


@functools.lru_cache(maxsize=64)
def _schemas(text: str) -> dict[str, Any]:
    """A schema for each tool. Raises ValueError that says what is wrong with the text."""
    tools = parse(text)
    if tools is NOTHING or not isinstance(tools, dict) or not tools:
        raise ValueError("it is not a JSON object")
    for name, arguments in tools.items():
        if not isinstance(arguments, list | dict):
            raise ValueError(f"tool {name!r} has neither a schema nor a list of names")
        schema = {"required": arguments} if isinstance(arguments, list) else arguments
        tools[name] = checked_schema(shown(schema) or "")
    return tools


@dataclass(frozen=True)
class ResultUsed:
    """1 where the field says something that a tool has told it and the question has not, else 0.

    Something is a word of at least ``letters`` letters, or a number. Tools' answers are read of DSPy's ``ReAct`` and
    ``ReActV2``, of agents that are not DSPy, or of the field ``observations`` (a text or a list); those of calls that
    failed tell nothing. A run without any scores 0, and so does an answer of such words as yes.

    Range: 0 or 1. Reads: the field, observations, the example's inputs. Cost: none.
    """

    field: str
    observations: str = ""
    letters: int = 4

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        if self.letters < 1:
            refuse(self, "letters", "a whole number of at least 1")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
        answer = self._words(read_text(prediction, steps, self.field))
        seen = [read(prediction, steps, self.observations)] if self.observations else observations_of(prediction, steps)
        told = {word for value in seen for word in self._words(shown(value))}
        asked = {word for value in example.inputs().toDict().values() for word in self._words(shown(value))}
        return bool(answer & told - asked)

    def _words(self, text: str | None) -> set[str]:
        words = normal_form(text or "").replace("_", " ").split()
        return {w for w in words if len(w) >= self.letters or any(c.isdigit() for c in w)}
