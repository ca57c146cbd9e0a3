"""A user's own task in one file: which word ends the line?  Try: colever eval examples/last_word.py:task"""

from random import Random

import dspy

from colever import Criterion, Rubric, Task

WORDS = ["apple", "drill", "green", "horse", "lamp", "melon", "north", "paper", "queen", "silver"]


def rows(seed: int, count: int) -> list[dspy.Example]:
    rng = Random(seed)
    lines = {" ".join(rng.sample(WORDS, 4)) for _ in range(3 * count)}
    return [dspy.Example(text=line, word=line.split()[-1]).with_inputs("text") for line in sorted(lines)[:count]]


def program() -> dspy.Module:
    return dspy.Predict(dspy.Signature("text -> word", "Pick a word."))


def last(example, prediction, steps=()):
    return prediction.word == example.word


def in_line(example, prediction, steps):
    return prediction.word in example.text.split()


LINES = rows(seed=1, count=256)
task = Task(
    name="last_word",
    program=program,
    train=LINES[:96],
    dev=LINES[96:160],
    test=LINES[160:],
    rubric=Rubric([Criterion("last", last, weight=2), Criterion("in_line", in_line, weight=1)]),
    gold=last,
    instructions={"self": ["Say the word at the end.", "Say the word at the start."]},
)
