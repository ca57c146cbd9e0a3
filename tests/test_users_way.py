"""A user's own optimizer as a way: its text is part of a round's key, and what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import ToyEngine, toy_task

from colever.config import PromptSettings
from colever.errors import LeverError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.lever import NullProgress, Pull
from colever.optimizers.prompt_lever import PromptLever

HEAD = "import dspy\nfrom dspy.teleprompt import Teleprompter\n"


def lever_of(file: Path, text: str) -> PromptLever:
    file.write_text(HEAD + text)
    return PromptLever(PromptSettings(way=f"{file}:Mine", examples=16))


def pull(lever: PromptLever, folder: Path) -> Pull:
    task = toy_task()
    return lever.improve(task.base_candidate(), task, ToyEngine(), Budget(), 3, folder, NullProgress())


def says(words: str) -> str:
    return f"""
class Mine(Teleprompter):
    def compile(self, student, **kwargs):
        assert kwargs["trainset"]
        for p in student.predictors():
            p.signature = p.signature.with_instructions({words!r})
        return student
"""


def test_another_text_is_another_round(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    first, same = lever_of(file, says("Work in steps.")).settings, lever_of(file, says("Work in steps.")).settings
    assert first == same
    assert lever_of(file, says("Think.")).settings != first


def test_what_its_file_raises_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.py:Mine: NameError: name 'nobody' is not defined"):
        lever_of(tmp_path / "mine.py", "Mine = nobody")


def test_it_may_take_any_argument(tmp_path: Path) -> None:
    made = pull(lever_of(tmp_path / "mine.py", says("Work in steps and then answer.")), tmp_path / "pull")
    assert made.candidate.prompts["solve"].instructions == "Work in steps and then answer."


def test_another_program_is_refused(tmp_path: Path) -> None:
    text = """
class Mine(Teleprompter):
    def compile(self, student, *, trainset):
        return dspy.Predict("question -> answer")
"""
    with pytest.raises(LeverError, match=r"made a program with predictors self; accepted: the task's, solve"):
        pull(lever_of(tmp_path / "mine.py", text), tmp_path / "pull")
