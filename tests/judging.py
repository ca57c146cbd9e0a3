"""What the tests of judges share: a judge that is scripted, and tasks that it scores."""

from __future__ import annotations

from typing import Any

import dspy
from scripted_openai import ScriptedOpenAI
from toy import right, toy_task

from colever.config import JudgeSettings
from colever.tasks.criteria.judge import Judge
from colever.tasks.rubric import Criterion, Rubric

ROW = dspy.Example(question="2 + 2", answer="4").with_inputs("question")


def script(messages: list[dict[str, Any]]) -> str:
    """Good where the material holds a digit as the answer, else bad."""
    answer = messages[-1]["content"].partition("output answer\n")[2].partition("\n")[0].strip()
    return f"It says {answer!r}.\n\nVERDICT: {'good' if answer.isdigit() else 'bad'}"


def said(text: str) -> dspy.Prediction:
    return dspy.Prediction(answer=text)


def name(server: ScriptedOpenAI, model: str = "scripted") -> str:
    return f"{model}@{server.address}"


def judge(server: ScriptedOpenAI, **changes: Any) -> Judge:
    return Judge(**{"question": "Is it right?", "models": (name(server),), **changes})


def settings(**changes: Any) -> JudgeSettings:
    return JudgeSettings(**{"retry_wait": 0.01, "timeout": 30.0, "retries": 2, **changes})


def judged_task(server: ScriptedOpenAI, **changes: Any) -> Any:
    rubric = Rubric([Criterion("quality", judge(server, **changes)), Criterion("right", right, 0)])
    return toy_task(rubric=rubric)
