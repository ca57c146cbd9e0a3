"""``lookup``: an agent that calls a tool over a small knowledge base, one or two hops, then answers.

Base habits stop too early; how thorough to be can be said in a prompt, when to stop is a skill. The watched
split ``three_hops`` shows what generalizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

import dspy

from colever.pipelines.programs import ToolAgent
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

SYLLABLES = "ka lo mi ru te na so vi da pe zu ri mo le ta ni".split()
PEOPLE = [(a + b).capitalize() for a in SYLLABLES for b in SYLLABLES if a != b]
RELATIONS = "boss city firm friend pet color street team".split()


def knowledge(seed: int) -> dict[tuple[str, str], str]:
    """(relation, name) → name, for every relation and name; nobody is related to themselves."""
    rng = Random(seed)
    return {(r, p): rng.choice([q for q in PEOPLE if q != p]) for r in RELATIONS for p in PEOPLE}


FACTS = knowledge(30)


def draw(rng: Random, hops: int) -> dspy.Example:
    """A question over ``hops`` facts, with its answer and the facts on the way."""
    relations, name = [rng.choice(RELATIONS) for _ in range(hops)], rng.choice(PEOPLE)
    question = "What is the " + " of the ".join(reversed(relations)) + f" of {name}?"
    facts = []
    for relation in relations:
        value = FACTS[relation, name]
        facts.append(f"{relation} of {name} = {value}")
        name = value
    return dspy.Example(question=question, facts=facts, answer=name).with_inputs("question")


def examples(seed: int, count: int, hops: Sequence[int]) -> list[dspy.Example]:
    """``count`` distinct questions whose numbers of hops are drawn from ``hops``."""
    rng, rows = Random(seed), dict[str, dspy.Example]()
    while len(rows) < count:
        row = draw(rng, rng.choice(hops))
        rows[row.question] = row
    return list(rows.values())


def answer(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
    return prediction.answer.strip() == example.answer


def found(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    return sum(f in prediction.notes for f in example.facts) / len(example.facts)


def no_waste(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    calls = len(prediction.notes)
    return 1.0 if not calls else sum(n in example.facts for n in dict.fromkeys(prediction.notes)) / calls


def a_name(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.answer.strip() in PEOPLE


def tool_used(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return bool(prediction.notes)


def labelled(example: dspy.Example) -> dspy.Prediction:
    return dspy.Prediction(answer=example.answer, notes=list(example.facts))


QUESTIONS = examples(seed=31, count=256 + 256 + 512, hops=(1, 2, 2))

task = Task(
    name="lookup",
    program=partial(ToolAgent, FACTS),
    train=QUESTIONS[:256],
    dev=QUESTIONS[256:512],
    test=QUESTIONS[512:],
    watched={"three_hops": examples(seed=32, count=256, hops=(3,))},
    rubric=Rubric([
        Criterion("answer", answer, 0.5, "the answer is not the one that the knowledge base gives"),
        Criterion("found", found, 0.3, "look up every fact that the question needs", "act"),
        Criterion("no_waste", no_waste, 0.1, "calls that the question did not need", "act"),
        Criterion("a_name", a_name, 0.1, "the answer is one name", "reply"),
        Criterion("tool_used", tool_used, 0, predictor="act"),
    ]),
    gold=answer,
    instructions={
        "act": [
            "Keep using the tool until the last fact of the chain is known.",
            "Search fact by fact and be done only when nothing is missing.",
            "Be done after one search.",
            "Be done without any search.",
        ],
        "reply": ["Tell what the last note says.", "Name the answer."],
    },
    max_tokens=48,
    labelled=labelled,
)  # fmt: skip
