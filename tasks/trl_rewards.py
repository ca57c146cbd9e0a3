"""TRL's reward functions as criteria, and a rubric as one of TRL's. Imports no TRL: both are callables.

A reward function takes ``prompts``, ``completions`` and the dataset's columns as lists, and returns a number for each.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from colever.errors import InfrastructureError, TaskError
from colever.tasks.criteria.fields import last_call, read_text, shown
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.tasks.rubric import Rubric
from colever.tasks.task import Task
from colever.types import Completion, Score, Step


@dataclass(frozen=True)
class TrlReward:
    """What a reward function of TRL gives the field's text, brought from [``low``, ``high``] to [0, 1].

    The function is asked for one completion at a time: ``completions`` is a chat's answer (with ``chat=False`` its
    text), ``prompts`` the question, and every field of the example a column. Raises TaskError where it returns
    None (TRL's word for no reward), anything but a number, or one outside the range declared.

    Range: [0, 1]. Reads: the field (``*``: what the last call wrote), the example. Cost: the function's.
    """

    function: Callable[..., Any]
    low: float = 0.0
    high: float = 1.0
    field: str = "*"
    chat: bool = True

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        if self.low >= self.high:
            refuse(self, "high", f"a number above low ({self.low})")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        text = read_text(prediction, steps, self.field)
        if text is None:
            return 0.0
        call = last_call(steps, self.field.rpartition(".")[0])
        prompt = call.completion.prompt if call is not None and call.completion.prompt else _question(example)
        value = self._asked(
            prompts=[[{"role": "user", "content": prompt}] if self.chat else prompt],
            completions=[[{"role": "assistant", "content": text}] if self.chat else text],
            completion_ids=[list(call.completion.completion_ids) if call is not None else []],
            **{name: [value] for name, value in example.items() if name not in _TAKEN},
        )
        return (value - self.low) / (self.high - self.low)

    def _asked(self, **arguments: Any) -> float:
        answer = self.function(**arguments)
        rewards = list(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)
        name = getattr(self.function, "__name__", type(self.function).__name__)
        try:
            (value,) = (float(reward) for reward in rewards)
        except (TypeError, ValueError):
            raise TaskError(f"trl_reward: {name} returned {rewards!r}; accepted: one number") from None
        if not self.low <= value <= self.high:
            raise TaskError(f"trl_reward: {name} returned {value}; accepted: low to high, {self.low} to {self.high}")
        return value


_TAKEN = ("prompts", "completions", "completion_ids")


def _question(example: dspy.Example) -> str:
    """The inputs, a line each; a single one as it stands."""
    inputs = {name: shown(value) or "" for name, value in example.inputs().items()}
    return next(iter(inputs.values())) if len(inputs) == 1 else "\n".join(f"{n}: {v}" for n, v in inputs.items())


def rubric_reward(
    graded: Task | Rubric, read: str | type[dspy.Signature] = "answer", inputs: Sequence[str] = ()
) -> Callable[..., list[float | None]]:
    """A rubric, or a task's, as a reward function for TRL's trainers.

    A completion becomes a prediction: its text is the field ``read``, or is parsed as DSPy's chat adapter would by a
    signature; one that cannot be parsed has the rubric's lowest score. The dataset's columns become the example, of
    which ``inputs`` are inputs (a task knows its own). Criteria see one step without a predictor's name. Where the
    machinery behind a criterion fails, the reward is None, which TRL leaves out.
    """
    rubric = graded.rubric if isinstance(graded, Task) else graded
    names = list(graded.train[0].inputs().keys()) if isinstance(graded, Task) else list(inputs)

    def rubric_score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        log = columns.pop("log_metric", None)
        rows = {n: c for n, c in columns.items() if isinstance(c, list | tuple) and len(c) == len(completions)}
        ids = rows.pop("completion_ids", [None] * len(completions))
        scores = [
            _score(rubric, read, _example({n: c[i] for n, c in rows.items()}, names), _text(completion), ids[i])
            for i, completion in enumerate(completions)
        ]
        if callable(log):
            for name, mean in _means([s for s in scores if s is not None]).items():
                log(f"rubric/{name}", mean)
        return [None if score is None else score.total for score in scores]

    return rubric_score


def _score(
    rubric: Rubric, read: str | type[dspy.Signature], example: dspy.Example, text: str, ids: Sequence[int] | None
) -> Score | None:
    counted = None if ids is None else (0, len(ids))
    try:
        fields = {read: text} if isinstance(read, str) else dspy.ChatAdapter().parse(read, text)
    except AdapterParseError as error:
        return rubric.lowest(f"no {', '.join(error.signature.output_fields)}")
    completion = Completion(text, (), tuple(ids or ()), (), "stop", "", counted=counted)
    try:
        return rubric.score(example, dspy.Prediction(**fields), [Step("", 0, completion, outputs=fields)])
    except InfrastructureError:
        return None


def _example(row: Mapping[str, Any], inputs: Sequence[str]) -> dspy.Example:
    if missing := [name for name in inputs if name not in row]:
        raise TaskError(f"rubric_reward: no column {missing[0]!r}; there are: {', '.join(row) or 'none'}")
    return dspy.Example(**row).with_inputs(*inputs)


def _text(completion: Any) -> str:
    """A completion's text: of a chat that of its last message."""
    last = completion[-1] if isinstance(completion, list) and completion else completion
    content = last.get("content") if isinstance(last, Mapping) else last
    return content if isinstance(content, str) else shown(content) or ""


def _means(scores: Sequence[Score]) -> dict[str, float]:
    names = scores[0].by_criterion if scores else ()
    return {name: sum(score.by_criterion[name] for score in scores) / len(scores) for name in names}
