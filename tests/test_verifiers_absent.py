"""Without the library ``verifiers``, and without its task sets: the message says what to give."""

from __future__ import annotations

import sys

import pytest

from colever.errors import TaskError
from colever.tasks.load import load_task


def test_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(
        TaskError, match=r"verifiers cannot be imported .*; accepted: pip install 'colever\[verifiers\]'"
    ):
        load_task("verifiers:gsm8k-v1")


def test_a_file_of_rows_is_refused() -> None:
    with pytest.raises(TaskError, match=r"--data rows.csv: verifiers:gsm8k-v1 has its own rows; accepted: with"):
        load_task("verifiers:gsm8k-v1", "rows.csv")
