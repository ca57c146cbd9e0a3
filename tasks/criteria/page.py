"""docs/criteria.md, made of the kinds' docstrings and fields. Knows the classes and Markdown. Written anew by:

python -m colever.tasks.criteria.page docs/criteria.md
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from colever.tasks.criteria import KINDS

_HEAD = """# Criteria ready to use

Made from `tasks/criteria/` by `python -m colever.tasks.criteria.page docs/criteria.md`; a test compares the two.

Each is a callable of an example, its prediction and the rollout's steps that gives a number in [0, 1] or a truth value,
as any criterion does: `Criterion("answer", Number("answer"), 0.5, "the sum is wrong")`.

- A *field* is an output field of the prediction. `predictor.field` is that of a predictor's last call, `predictor.*`
  the text of that call as the model wrote it, `*` the text of the last call of all. A *label* is a field of the
  example; unless said, the one of the same name.
- A field that the prediction has not stops the run with the names of those that there are, and so does an example whose
  label is of no use. What the model wrote never does: `None`, another type, text that cannot be read, and text of more
  than 100,000 characters score 0. A predictor that was not called wrote nothing: 0.
- Settings count in the rubric's digest, and so does the code of the criterion. The cost of most is none beside a model
  call's; the table says where it is not.
"""
_TAIL = """## Other libraries' scorers

| from Python | what it is |
|---|---|
| `colever.tasks.trl_rewards.TrlReward(function, low=0.0, high=1.0)` | a reward function of TRL's as a criterion |
| `colever.tasks.trl_rewards.rubric_reward(task_or_rubric)` | a rubric as a reward function for TRL's trainers |
| `colever.tasks.dspy_metric.rubric_metric(task_or_rubric)` | a rubric as a metric for DSPy |
| `colever.tracking.scorer.rubric_scorer(rubric)` | a rubric as a scorer for MLflow |

`TrlReward` asks for one completion at a time and hands over the example's fields as columns; what the function
returns is brought from [`low`, `high`] to [0, 1]. `None`, which TRL takes for *no reward*, and a number outside of
the range stop the run. `rubric_reward` reads a completion as the field `answer` unless told otherwise (`read`:
another field, or a signature whose fields are parsed), and the dataset's columns as the example's fields. A broken
judge or sandbox is `None`, no zero.

The value of `rubric_metric` is the total score; its truth, by which demos are bootstrapped, is whether that is
`accept` (1.0) or more; to `dspy.GEPA`, which asks about one predictor, it gives `Rubric.feedback` for that predictor.
`dspy.Evaluate` hands over no trace, so that criteria of steps see none. DSPy's own loops make a failure score of
every error, a broken judge's too; Colever's rollouts do not.

`rubric_scorer` gives the total with the feedback as its rationale, and each criterion as `rubric/<name>`.
"""


def page() -> str:
    """The whole page, with a newline at its end."""
    return "\n".join([_HEAD, *_table(), "", *(line for kind in KINDS for line in _section(kind)), _TAIL])


def _table() -> Iterator[str]:
    yield "| kind | range | reads | cost |\n|---|---|---|---|"
    for kind, criterion in KINDS.items():
        facts = facts_of(criterion)
        yield f"| [`{kind}`](#{kind}) | {facts['Range']} | {facts['Reads']} | {facts['Cost']} |"


def _section(kind: str) -> Iterator[str]:
    criterion = KINDS[kind]
    text = _plain(inspect.getdoc(criterion) or "").split("\nRange:")[0].strip()
    yield f"## {kind}\n\n{text}\n\n| setting | default | accepted |\n|---|---|---|"
    for name, default, accepted in _settings(criterion):
        yield f"| `{name}` | {default} | {accepted} |"
    yield ""


def settings_of(criterion: type) -> list[str]:
    """``name: accepted, default``, a line for each setting of a kind."""
    return [f"{name}: {accepted} ({default})" for name, default, accepted in _settings(criterion)]


def _settings(criterion: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and what is accepted of each."""
    hints = get_type_hints(criterion)
    for field in dataclasses.fields(criterion):
        default = "is needed" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
        yield field.name, default, _accepted(hints[field.name])


def facts_of(criterion: type) -> dict[str, str]:
    """``Range``, ``Reads`` and ``Cost`` of a kind, from the end of its docstring."""
    text = " ".join(_plain(inspect.getdoc(criterion) or "").split())
    match = re.search(r"Range: (?P<Range>.+?)\. Reads: (?P<Reads>.+?)\. Cost: (?P<Cost>.+?)\.?$", text)
    return match.groupdict() if match else {}


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _accepted(annotation: Any) -> str:
    parts, words = get_args(annotation), {str: "text", bool: "true, false", int: "a whole number", float: "a number"}
    if get_origin(annotation) is tuple:
        return {str: "a list of text", float: "a list of numbers"}.get(parts[0], "a list")
    if type(None) in parts:
        return f"{_accepted(parts[0])}, or none"
    return ", ".join(f"`{a}`" for a in parts) or words[annotation]


def main(arguments: Sequence[str]) -> None:
    """Writes the page into the file named."""
    Path(arguments[0]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
