"""The criterion ``math``, in threads, as rollouts are scored: right and wrong answers, and those that never end."""

from __future__ import annotations

import importlib.util
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_criteria import ANSWER, check

from colever.errors import TaskError
from colever.tasks.criteria import KINDS, math_process

CASES = [
    ("0.5", r"\frac{1}{2}", 1),
    (r"so it is \boxed{\frac{2}{4}}", "1/2", 1),
    (r"the answer is $\frac{1}{3}$", "1/2", 0),
    ("(x+1)^2", "x^2 + 2x + 1", 1),
    ("$x^2 + 2x + 2$", "x^2 + 2x + 1", 0),
    (r"2\sqrt{2}", r"\sqrt{8}", 1),
    (r"$\{3, 2, 1\}$", r"\{1, 2, 3\}", 1),
    ("#### 72", "#### 72", 1),
    (72, 72, 1),
    ("72", ["71", "72"], 1),
    ("x = 3", "3", 1),
    ("x^2 + 1", "1", 0),
    ("x^2 + 1", "x^2 + 1", 1),
    ("5 apples", "5", 1),
    ("5 or 6", "5", 0),
    ("none of this", "3", 0),
    ("", "3", 0),
    (None, "3", 0),
    ("\\frac{1}{", "3", 0),
    ("1" * 20_000, "3", 0),
]


def test_right_and_wrong_from_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda case: check("math", case[0], case[1], **ANSWER, seconds=30), CASES))
    assert dict(zip(map(repr, CASES), values, strict=True)) == {repr(case): case[2] for case in CASES}


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", r"$\sum_{n=1}^{10^{12}} \frac{1}{n!}$", "10000000!"])
def test_what_never_ends_scores_nothing_and_the_next_is_answered(answer) -> None:
    assert check("math", answer, "3", **ANSWER, seconds=1) == 0
    math_process.equal.cache_clear()
    assert check("math", "6/2", "3", **ANSWER, seconds=30) == 1  # the first of a new process, on a busy machine


def test_a_process_that_was_killed_is_started_again() -> None:
    assert check("math", "8/2", "4", **ANSWER, seconds=30) == 1
    os.kill(math_process._running[os.getpid()].pid, signal.SIGKILL)
    assert check("math", "10/2", "5", **ANSWER, seconds=30) == 1


def test_a_label_that_is_no_mathematics_stops_the_run() -> None:
    with pytest.raises(TaskError, match="the example's field 'answer' is ''; accepted: a number or an expression"):
        check("math", "3", "", **ANSWER)


@pytest.mark.parametrize(("name", "value"), [("digits", 16), ("seconds", 0)])
def test_settings_that_are_refused(name, value) -> None:
    with pytest.raises(TaskError, match=f"math: {name} is {value}; accepted: "):
        KINDS["math"](field="answer", **{name: value})


def test_without_the_extra_it_says_how_to_get_it(monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "colever.tasks.criteria.mathematics.find_spec", lambda name: None if name == "math_verify" else found(name)
    )
    with pytest.raises(TaskError, match=r"pip install 'colever\[math\]'"):
        KINDS["math"](field="answer")


def test_as_trl_scores_it() -> None:
    """The same answers through TRL's own reward function, which wants LaTeX."""
    from trl.rewards import accuracy_reward

    for answer, right in (("1/2", 1), ("1/3", 0)):
        top, bottom = answer.split("/")
        text = rf"it is \boxed{{\frac{{{top}}}{{{bottom}}}}}"
        assert accuracy_reward([[{"content": text}]], [r"\frac{1}{2}"]) == [right]
        assert check("math", text, r"\frac{1}{2}", **ANSWER) == right
