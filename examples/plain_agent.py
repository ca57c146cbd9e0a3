"""An agent that knows nothing of DSPy or Colever: the openai client, a tool, a loop.  Its task is at the end.

It looks facts up, one by one, and answers with the last one that it found. Its protocol is plain text, since the
seed model knows no other (docs/agents.md has one with ``tools``).  Try: colever sweep examples/plain_agent.py:task
"""

import re

import dspy

from colever import Criterion, Rubric, Task, agent_program
from colever.tasks.lookup import FACTS, examples

SYSTEM = "You answer questions. Your tool is: find RELATION of NAME."
TURN = "[[ ## question ## ]]\n{question}\n\n[[ ## notes ## ]]\n{notes}\n\n[[ ## action ## ]]\n"


def run(connection, question):
    """One question through the agent: its answer and what it has found on the way."""
    client = connection.client()  # or openai.OpenAI(base_url=connection.base_url, api_key=connection.api_key)
    messages, notes = [{"role": "system", "content": SYSTEM}], []
    for _ in range(4):
        messages.append({"role": "user", "content": TURN.format(question=question, notes="; ".join(notes) or "none")})
        reply = client.chat.completions.create(model="any", messages=messages).choices[0].message
        messages.append(reply)
        call = re.search(r"find (\w+) of (\w+)", reply.content)
        if call is None:
            break
        notes.append(f"{call[1]} of {call[2]} = {FACTS.get((call[1], call[2]), 'unknown')}")
    return {"answer": notes[-1].split(" = ")[1] if notes else "", "notes": notes}


def right(example, prediction, steps=()):
    return prediction.answer == example.answer


def found(example, prediction, steps):
    return sum(fact in prediction.notes for fact in example.facts) / len(example.facts)


def no_waste(example, prediction, steps):
    return sum(note in example.facts for note in prediction.notes) / max(1, len(prediction.notes))


def labelled(example):
    return dspy.Prediction(answer=example.answer, notes=list(example.facts))


QUESTIONS = examples(seed=61, count=128 + 128 + 256, hops=(1, 2, 2))

task = Task(
    name="plain_agent",
    program=agent_program(run, SYSTEM),
    train=QUESTIONS[:128],
    dev=QUESTIONS[128:256],
    test=QUESTIONS[256:],
    rubric=Rubric([Criterion("right", right, 5), Criterion("found", found, 4), Criterion("no_waste", no_waste, 1)]),
    gold=right,
    instructions={
        "agent": [
            "Your tool is: find RELATION of NAME. Go on until every fact of the question is found.",
            "Look facts up with the tool, then be done.",
        ]
    },
    max_tokens=32,
    labelled=labelled,
)
