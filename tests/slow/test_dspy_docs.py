"""The snippets of docs/dspy.md, run one after another as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "dspy.md"


@pytest.mark.slow
def test_the_snippets_run(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    checks = """
assert again.solve.lm.model == trained.solve.lm.model != lm.model
assert not best.flag_compilation_error_occurred
assert {c["strategy"] for c in best.candidate_programs} == {"", "p", "p -> w"}
assert finetuned.solve.lm.model not in (lm.model, trained.solve.lm.model)
assert sampled.solve.lm.model not in (lm.model, trained.solve.lm.model)
assert sampled.solve.lm is sampled.check.lm
"""
    env = {**os.environ, "DSPY_FINETUNEDIR": str(tmp_path / "weights")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*snippets, checks])], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
