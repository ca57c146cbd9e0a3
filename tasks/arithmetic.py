"""``arithmetic``: a chain of operations, worked, then checked by a second predictor. A skill.

Products come before sums, as usual; nothing in the prompts says so. Chains in train, dev and test have three
operations; the watched split ``longer`` has five and shows what generalizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

import dspy

from colever.pipelines.programs import SolveAndCheck
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

LIMIT = 50  # every partial result lies in 0 … LIMIT, read either way
EQUATION = re.compile(r"(-?\d+) ([+*-]) (-?\d+) = (-?\d+)")


def apply(a: int, operator: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def partial_results(problem: str, products_first: bool = True) -> list[int]:
    """Every partial result in order; the last is the value of the chain."""
    tokens = problem.split()
    values, operators, results = [int(t) for t in tokens[::2]], tokens[1::2], []
    while operators:
        at = operators.index("*") if products_first and "*" in operators else 0
        values[at] = apply(values[at], operators.pop(at), values.pop(at + 1))
        results.append(values[at])
    return results


def working(problem: str) -> str:
    """Every operation with its result, products first."""
    tokens, shown = problem.split(), []
    while len(tokens) > 1:
        at = tokens.index("*") if "*" in tokens else 1
        a, operator, b = tokens[at - 1 : at + 2]
        tokens[at - 1 : at + 2] = [str(apply(int(a), operator, int(b)))]
        shown.append(f"{a} {operator} {b} = {tokens[at - 1]}")
    return "; ".join(shown)


def labelled(example: dspy.Example) -> dspy.Prediction:
    work = working(example.problem)
    return dspy.Prediction(work=work, first=example.answer, review=work, answer=example.answer)


def draw(rng: Random, operations: int) -> str:
    """A chain whose partial results stay in range; in at least half of them the order of operations matters."""
    matters = rng.random() < 0.5
    while True:
        operators = rng.choices("++--**", k=operations)
        near_product = ["*" in operators[max(0, i - 1) : i + 1] for i in range(operations + 1)]
        terms = [str(rng.randint(2, 6) if near else rng.randint(1, 20)) for near in near_product]
        problem = " ".join([terms[0], *(f"{o} {t}" for o, t in zip(operators, terms[1:], strict=True))])
        right, naive = partial_results(problem), partial_results(problem, products_first=False)
        if all(0 <= r <= LIMIT for r in right + naive) and not (matters and right[-1] == naive[-1]):
            return problem


def examples(seed: int, count: int, operations: int) -> list[dspy.Example]:
    """``count`` distinct chains; equal seeds give equal lists."""
    rng, problems = Random(seed), dict[str, None]()
    while len(problems) < count:
        problems[draw(rng, operations)] = None
    return [dspy.Example(problem=p, answer=partial_results(p)[-1]).with_inputs("problem") for p in problems]


def shown(text: str, problem: str) -> float:
    """The share of the problem's operations that ``text`` works out, less those that it gets wrong."""
    operations, equations = len(problem.split()) // 2, EQUATION.findall(text)
    right = sum(apply(int(a), op, int(b)) == int(c) for a, op, b, c in equations)
    return max(0.0, min(right, operations) - (len(equations) - right)) / operations


def answer(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> bool:
    return prediction.answer == example.answer


def first_answer(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return prediction.first == example.answer


def worked(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    return shown(prediction.work, example.problem)


def rechecked(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> float:
    return shown(prediction.review, example.problem)


def in_range(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> bool:
    return 0 <= prediction.first <= LIMIT and 0 <= prediction.answer <= LIMIT


CHAINS = examples(seed=20, count=256 + 256 + 512, operations=3)

task = Task(
    name="arithmetic",
    program=SolveAndCheck,
    train=CHAINS[:256],
    dev=CHAINS[256:512],
    test=CHAINS[512:],
    watched={"longer": examples(seed=21, count=256, operations=5)},
    rubric=Rubric([
        Criterion("answer", answer, 0.5, "the final answer is wrong: products come before sums"),
        Criterion("first_answer", first_answer, 0.15, "the worked answer is wrong", "solve"),
        Criterion("worked", worked, 0.1, "show every operation with its right result", "solve"),
        Criterion("in_range", in_range, 0.25, f"answers lie between 0 and {LIMIT}"),
        Criterion("rechecked", rechecked, 0, predictor="check"),
    ]),
    gold=answer,
    instructions={
        "solve": [
            "Take the operations one at a time and put down what each one gives.",
            "State the number straight away, with nothing else.",
            "Do it carefully, showing the whole working.",
            "Be brief: the value is enough.",
        ],
        "check": [
            "Redo the whole computation, with every step shown.",
            "Repeat the answer that was given.",
            "Compute everything once more and give what you get.",
        ],
    },
    max_tokens=96,
    labelled=labelled,
)  # fmt: skip
