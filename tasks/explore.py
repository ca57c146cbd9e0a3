"""``explore``: a walk of 4 to 100 calls through a small town with state, in search of a lost pet. Long-horizon search.

A town is a ring of places. ``find street of X`` walks on from X to the next place, ``find garden of X`` looks into the
garden there (and finds X itself where no pet is in it), ``find pet of X`` takes the pet that was seen; each works only
where the walker stands. Base habits stop after a step or two, and how far to go is not known beforehand. The watched
split ``far`` (42 calls or more) shows what generalizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from random import Random

import dspy

from colever.pipelines.programs import Act, Reply
from colever.tasks.lookup import PEOPLE
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

SHOWN = 6  # notes that the walker still has in mind


class Town:
    """Where the walker stands, what was seen, and what a call finds. A call that is none finds nothing."""

    def __init__(self, places: Sequence[str], at: int, pet: str) -> None:
        self.places, self.at, self.pet, self.here = places, at, pet, 0
        self.seen, self.taken = list[str](), False

    def find(self, what: str, name: str) -> str:
        if name != self.places[self.here]:
            return "far"
        if what == "street":
            self.here = (self.here + 1) % len(self.places)
            return self.places[self.here]
        if what == "garden":
            self.seen.append(name)
            return self.pet if self.here == self.at else name  # an empty one: nothing but the place itself
        if what == "pet" and self.here == self.at and name in self.seen:
            self.taken = True
            return self.pet
        return "nothing"


class Walk(dspy.Module):
    """Calls ``find`` on the town until it says anything else, then names the pet from its last notes."""

    def __init__(self, calls: int = 100) -> None:
        super().__init__()
        self.calls, self.act, self.reply = calls, dspy.Predict(Act), dspy.Predict(Reply)

    def forward(self, question: str, places: list[str], at: int, pet: str) -> dspy.Prediction:
        town, notes = Town(places, at, pet), list[str]()
        for _ in range(self.calls):
            action = self.act(question=question, notes=shown(notes)).action.strip()
            if (match := re.fullmatch(r"find (\w+) of (\w+)", action)) is None:
                break
            notes.append(f"{match[1]} of {match[2]} = {town.find(match[1], match[2])}")
        answer = self.reply(question=question, notes=shown(notes)).answer
        return dspy.Prediction(answer=answer, calls=len(notes), seen=town.seen, taken=town.taken)


def shown(notes: Sequence[str]) -> str:
    return "; ".join(notes[-SHOWN:]) or "none"


def examples(seed: int, count: int, distances: Sequence[int]) -> list[dspy.Example]:
    """``count`` towns whose pet is one of ``distances`` away; equal seeds give equal lists."""
    rng, rows = Random(seed), []
    for _ in range(count):
        at = rng.choice(distances)
        *places, pet = rng.sample(PEOPLE, at + rng.randint(2, 6))
        question = f"What is the street of the garden of {places[0]}?"
        row = dspy.Example(question=question, places=places, at=at, pet=pet, answer=pet)
        rows.append(row.with_inputs("question", "places", "at", "pet"))
    return rows


def found(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
    return prediction.taken and prediction.answer.strip() == example.answer


def searched(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    wanted = example.places[: example.at + 1]
    return sum(place in prediction.seen for place in wanted) / len(wanted)


def taken(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.taken


def no_waste(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    needed = 2 * example.at + 2  # a look at each place, the ways between them, the pet
    return min(1.0, needed / prediction.calls) if prediction.taken else 0.0


TOWNS = examples(seed=50, count=128 + 128 + 256, distances=range(1, 11))

task = Task(
    name="explore",
    program=partial(Walk),
    train=TOWNS[:128], dev=TOWNS[128:256], test=TOWNS[256:],
    watched={"far": examples(seed=51, count=64, distances=range(20, 46))},
    rubric=Rubric([
        Criterion("found", found, 0.4, "the pet was not taken and named"),
        Criterion("searched", searched, 0.4, "look into the garden of every place on the way", "act"),
        Criterion("taken", taken, 0.1, "take the pet where the garden has it", "act"),
        Criterion("no_waste", no_waste, 0.1, "calls that found nothing new", "act"),
    ]),
    gold=found, max_tokens=24,
    instructions={"act": [
        "Keep using the tool until the last fact of the chain is known.",
        "Look into each garden, then walk on along the street, until the pet is found.",
    ], "reply": ["Tell what the last note says."]},
)  # fmt: skip
