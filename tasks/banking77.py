"""``banking77``: a bank's customer's message and which of 77 intents it has (arXiv 2003.04807), by chain of thought.

250 train and 500 test examples, as in the mmGRPO paper (arXiv 2508.04660), and as many for dev as for train.
``banking77-K`` routes the messages of the K most frequent intents to K teams, one for each intent, by a code and
without a chain of thought: real messages within reach of a model that cannot spell the intents' names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import dspy

from colever.errors import TaskError
from colever.tasks.criteria.match import Exact
from colever.tasks.data import Row, Source, read_splits
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task

SOURCE = Source(
    "mteb/banking77",
    ("text", "category"),
    spellings={"label_text": "category"},
    published={"b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b": "the published training set"},
)
SIZES = 250, 250, 500  # train, dev, test


class Intent(dspy.Signature):
    """Name the intent of the customer's message."""

    message: str = dspy.InputField()
    intent: str = dspy.OutputField()


class Route(dspy.Signature):
    """Name the team for the ticket."""

    ticket: str = dspy.InputField()
    team: str = dspy.OutputField()


def classify(intents: tuple[str, ...]) -> dspy.Module:
    """One chain of thought to one of the intents."""
    return dspy.ChainOfThought(Intent.with_updated_fields("intent", type_=Literal[intents]))


def route(teams: tuple[str, ...]) -> dspy.Module:
    """One predictor, to one of the teams."""
    return dspy.Predict(Route.with_updated_fields("team", type_=Literal[teams]))


def most_frequent(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """Names of intents, A to Z. Raises TaskError if there are not so many."""
    counts = Counter(row["category"] for row in rows)
    if not 2 <= count <= len(counts):
        raise TaskError(f"banking77-{count}: accepted: 2 to {len(counts)} intents")
    return tuple(sorted(sorted(counts, key=lambda name: (-counts[name], name))[:count]))


def task(data: Path | str | None = None) -> Task:
    """With all intents of the rows. Raises TaskError where there are no such rows."""
    names: tuple[str, ...] = ()

    def keep(rows: Sequence[Row]) -> Callable[[Row], bool]:
        nonlocal names
        names = tuple(sorted({row["category"] for row in rows}))
        return lambda row: True

    def example(row: Row) -> dspy.Example:
        return dspy.Example(message=row["text"], intent=row["category"]).with_inputs("message")

    train, dev, test, origin = read_splits(SOURCE, data, SIZES, example, seed=7, keep=keep)
    return Task(
        name="banking77",
        program=partial(classify, names),
        train=train, dev=dev, test=test,
        rubric=Rubric([Criterion("intent", Exact("intent"), 1.0, "the message has another intent")]),
        gold=Exact("intent"),
        instructions={"predict": [
            "Read the message and say which of the intents it has.",
            "Decide what the customer wants and answer with the intent of that name.",
        ]},
        max_tokens=256,
        origin=origin,
    )  # fmt: skip


def restricted(data: Path | str | None, count: int) -> Task:
    """To the most frequent intents. Raises TaskError where rows or intents are too few."""
    teams: dict[str, str] = {}

    def keep(rows: Sequence[Row]) -> Callable[[Row], bool]:
        teams.update((name, f"K{place}") for place, name in enumerate(most_frequent(rows, count), 1))
        return lambda row: row["category"] in teams

    def example(row: Row) -> dspy.Example:
        return dspy.Example(ticket=row["text"], team=teams[row["category"]]).with_inputs("ticket")

    train, dev, test, origin = read_splits(SOURCE, data, SIZES, example, seed=7, keep=keep)
    book = "; ".join(f"{code} is {name.replace('_', ' ')}" for name, code in teams.items())
    return Task(
        name=f"banking77-{count}",
        program=partial(route, tuple(teams.values())),
        train=train, dev=dev, test=test,
        rubric=Rubric([Criterion("team", Exact("team"), 1.0, f"another team has tickets of this kind: {book}")]),
        gold=Exact("team"),
        instructions={"self": [f"Name the team for the ticket: {book}.", "Tell which team takes the ticket."]},
        max_tokens=24,
        origin=origin,
    )  # fmt: skip
