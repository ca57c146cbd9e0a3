"""The bundled DSPy programs: several predictors each, no task data of their own beyond what they are handed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import dspy


class Solve(dspy.Signature):
    """Compute the value of the expression."""

    problem: str = dspy.InputField()
    work: str = dspy.OutputField()
    answer: int = dspy.OutputField()


class Check(dspy.Signature):
    """Check the work and give the final answer."""

    problem: str = dspy.InputField()
    work: str = dspy.InputField()
    answer: int = dspy.InputField()
    review: str = dspy.OutputField()
    final: int = dspy.OutputField()


class SolveAndCheck(dspy.Module):
    """Works a problem, then a second predictor checks the work; the second one's answer counts."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict(Solve)
        self.check = dspy.Predict(Check)

    def forward(self, problem: str) -> dspy.Prediction:
        first = self.solve(problem=problem)
        second = self.check(problem=problem, work=first.work, answer=first.answer)
        return dspy.Prediction(work=first.work, first=first.answer, review=second.review, answer=second.final)


class ReadAndRoute(dspy.Module):
    """Names a ticket's topic, then quotes a code book's entry for it and the team; signatures come from the task."""

    def __init__(self, read: type[dspy.Signature], route: type[dspy.Signature]) -> None:
        super().__init__()
        self.read = dspy.Predict(read)
        self.route = dspy.Predict(route)

    def forward(self, ticket: str) -> dspy.Prediction:
        topic = self.read(ticket=ticket).topic
        routed = self.route(topic=topic)
        return dspy.Prediction(topic=topic, entry=routed.entry, team=routed.team)


class Act(dspy.Signature):
    """Decide on the action."""

    question: str = dspy.InputField()
    notes: str = dspy.InputField()
    action: str = dspy.OutputField()


class Reply(dspy.Signature):
    """State the answer that the notes give."""

    question: str = dspy.InputField()
    notes: str = dspy.InputField()
    answer: str = dspy.OutputField()


class ToolAgent(dspy.Module):
    """Calls ``find RELATION of NAME`` on a knowledge base until it says ``done``, then replies from its notes.

    An action of any other form raises ValueError (tool misuse: a failure of the policy); a fact that is not in the
    knowledge base is noted as such.
    """

    def __init__(self, facts: Mapping[tuple[str, str], str], calls: int = 4) -> None:
        super().__init__()
        self.calls = calls
        self.lookup = facts.get
        self.act = dspy.Predict(Act)
        self.reply = dspy.Predict(Reply)

    def forward(self, question: str) -> dspy.Prediction:
        notes: list[str] = []
        for _ in range(self.calls):
            action = self.act(question=question, notes="; ".join(notes) or "none").action.strip()
            if action == "done":
                break
            match = re.fullmatch(r"find (\w+) of (\w+)", action)
            if match is None:
                raise ValueError(f"tool misuse: {action!r} is neither 'find RELATION of NAME' nor 'done'")
            value = self.lookup((match[1], match[2])) or "unknown"
            notes.append(f"{match[1]} of {match[2]} = {value}")
        answer = self.reply(question=question, notes="; ".join(notes) or "none").answer
        return dspy.Prediction(answer=answer, notes=notes)
