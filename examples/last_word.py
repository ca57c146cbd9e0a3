"""A user's own task in one file: which word ends the line?  Try: colever eval examples/last_word.py:task"""

from random import Random

import dspy

from colever import Criterion, Rubric, Task

WORDS = ["apple", "drill", "green", "horse", "lamp", "melon", "north", "paper", "queen", "silver"]


def rows(seed: int, count: int) -> list[dspy.Example]:
    rng = Random(seed)
    lines = {" ".join(rng.sample(WORDS, 4)) for _ in range(3 * count)}
    return [dspy.Example(text=line, word=line.split()[-1]).with_inputs("text") for line in sorted(lines)[:count]]


class LastWord(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pick = dspy.Predict(dspy.Signature("text -> word", "Pick a word."))

    def forward(self, text: str) -> dspy.Prediction:
        return self.pick(text=text)


LINES = rows(seed=1, count=256)
task = Task(
    name="last_word",
    program=LastWord,
    train=LINES[:96],
    dev=LINES[96:160],
    test=LINES[160:],
    rubric=Rubric(
        [
            Criterion("last", lambda example, prediction, steps: prediction.word == example.word, weight=2),
            Criterion("in_line", lambda example, prediction, steps: prediction.word in example.text.split(), weight=1),
        ]
    ),
    gold=lambda example, prediction: prediction.word == example.word,
    instructions={"pick": ["Say the word at the end.", "Say the word at the start."]},
)
