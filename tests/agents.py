"""Parts of the tests of agents: a task on one, its rollouts, and a model that calls tools in Qwen's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
from conftest import write_follower

from colever.engines.lm import engine_lm
from colever.pipelines.agent import agent_program
from colever.pipelines.rollout import run_rollouts
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Rollout

SYSTEM = "You answer questions. Your tool is: find RELATION of NAME."
ADD = '<tool_call>\n{"name":"add","arguments":{"a":2,"b":3}}\n</tool_call>'  # not as a template would write it
BROKEN = '<tool_call>\n{"name":"add", oh\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}},
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n{% endif %}"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if not (tools and loop.first and m['role'] == 'system') %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ask(connection: Any, question: str, *, system: str = SYSTEM, **options: Any) -> Any:
    """One request by the openai client: the reply's message."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return connection.client().chat.completions.create(model="any", messages=messages, **options).choices[0].message


def examples(count: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"What is the pet of number {i}?").with_inputs("question") for i in range(count)]


def long_answer(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Any]) -> float:
    return min(1.0, len(str(prediction.answer)) / 40)


def task_on(run: Callable[..., Any] | Sequence[str], count: int = 8, check: Any = long_answer, **changes: Any) -> Task:
    settings = {name: changes.pop(name) for name in ("prompts", "seconds", "calls") if name in changes}
    program = agent_program(run, "" if "prompts" in settings else SYSTEM, **settings)
    rows = examples(count)
    fields: dict[str, Any] = {
        "name": "agent", "program": program, "train": rows, "dev": rows, "test": rows,
        "rubric": Rubric([Criterion("check", check)]), "max_tokens": 24,
    }  # fmt: skip
    return Task(**{**fields, **changes})


def roll(engine: Any, task: Task, **options: Any) -> list[Rollout]:
    return run_rollouts(
        task.program(), task.examples("train"), lm=engine_lm(engine), score=task.score, fail=task.fail,
        max_tokens=task.max_tokens, **options,
    )  # fmt: skip


def write_caller(path: Path, tools: bool = True) -> Path:
    """A checkpoint that calls a tool, writes a broken call or says a digit; its template shows tools, or does not."""
    from transformers import AutoTokenizer

    follows = {"\n": {ADD: 0.4, BROKEN: 0.2, "5": 0.4}}
    follows |= {text: {"<|im_end|>": 1.0} for text in (ADD, BROKEN, "5")}
    write_follower(path, follows, (ADD, BROKEN), 8192)
    if tools:
        (path / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(path)
    return path
