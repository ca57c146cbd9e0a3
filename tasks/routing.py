"""``routing``: a ticket is read, its topic named, and mapped to a team by an arbitrary code book. Knowledge.

The code book is in no instruction and in no pre-training: it has to come from demos or from rewards. The second
predictor first quotes the book's entry, then gives the team. Where a ticket names two subjects the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Literal

import dspy

from colever.pipelines.programs import ReadAndRoute
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

SUBJECTS = {
    "billing": "invoice refund charge payment receipt fee bill price",
    "shipping": "parcel courier delivery package tracking van box address",
    "account": "password login username profile email signup session pin",
    "hardware": "screen battery keyboard cable charger mouse speaker camera",
    "software": "crash update install menu window error version plugin",
    "travel": "flight hotel train luggage visa passport seat taxi",
}
CODE_BOOK = {"billing": "K3", "shipping": "R8", "account": "D1", "hardware": "T6", "software": "M2", "travel": "B9"}
ONE = [
    "hello, my {b} has a problem", "the {b} i got is not right", "we need a new {b}", "where is my {b}?",
    "it is about the {b}", "could you look into the {b}?", "i am not happy with the {b}", "the {b} is missing again",
]  # fmt: skip
TWO = [
    "the {a} is ok now. the {b} is not", "thanks for the {a}, but where is the {b}?", "not the {a}: the {b} is wrong",
    "i wrote about the {a}, now it is the {b}", "after the {a} came, the {b} did not work",
    "forget the {a}, look at the {b}",
]  # fmt: skip


class Read(dspy.Signature):
    """Name the topic of the ticket."""

    ticket: str = dspy.InputField()
    topic: Literal[tuple(SUBJECTS)] = dspy.OutputField()  # type: ignore[valid-type]


class Route(dspy.Signature):
    """Give the team for the topic."""

    topic: str = dspy.InputField()
    entry: str = dspy.OutputField()
    team: Literal[tuple(sorted(CODE_BOOK.values()))] = dspy.OutputField()  # type: ignore[valid-type]


def draw(rng: Random) -> dspy.Example:
    """A ticket with one subject or two, its topic and its team."""
    other, topic = rng.sample(list(SUBJECTS), 2)
    template = rng.choice(ONE if rng.random() < 0.5 else TWO)
    ticket = template.format(a=rng.choice(SUBJECTS[other].split()), b=rng.choice(SUBJECTS[topic].split()))
    code = CODE_BOOK[topic]
    return dspy.Example(ticket=ticket, topic=topic, entry=f"{topic} = {code}", team=code).with_inputs("ticket")


def examples(seed: int, count: int) -> list[dspy.Example]:
    """``count`` distinct tickets; equal seeds give equal lists."""
    rng, rows = Random(seed), dict[str, dspy.Example]()
    while len(rows) < count:
        row = draw(rng)
        rows[row.ticket] = row
    return list(rows.values())


def team(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
    return prediction.team == example.team


def topic(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.topic == example.topic


def valid(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.team in CODE_BOOK.values()


def consistent(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return CODE_BOOK[prediction.topic] == prediction.team


def quoted(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.entry == f"{prediction.topic} = {prediction.team}"


def labelled(example: dspy.Example) -> dspy.Prediction:
    return dspy.Prediction(topic=example.topic, entry=example.entry, team=example.team)


TICKETS = examples(seed=40, count=256 + 256 + 512)

task = Task(
    name="routing",
    program=partial(ReadAndRoute, Read, Route),
    train=TICKETS[:256],
    dev=TICKETS[256:512],
    test=TICKETS[512:],
    rubric=Rubric([
        Criterion("team", team, 0.5, "the code book gives another team for this topic"),
        Criterion("topic", topic, 0.25, "the last subject of the ticket is its topic", "read"),
        Criterion("valid", valid, 0.25, f"a team is one of {', '.join(sorted(CODE_BOOK.values()))}", "route"),
        Criterion("consistent", consistent, 0, predictor="route"),
        Criterion("quoted", quoted, 0, predictor="route"),
    ]),
    gold=team,
    instructions={
        "read": [
            "Whatever the ticket ends with is its topic.",
            "What the ticket opens with is its topic.",
            "Tell the subject of the ticket.",
        ],
        "route": ["Tell which team takes the topic.", "Send the topic to its team."],
    },
    max_tokens=48,
    labelled=labelled,
)  # fmt: skip
