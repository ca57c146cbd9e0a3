"""``humaneval`` on rows of the tests' own: right answers score 1.0 through the real sandbox, wrong ones less."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from humaneval_rows import rows

from colever.engines.lm import open_engine
from colever.errors import InfrastructureError, TaskError
from colever.optimizers.evaluate import evaluate
from colever.tasks import humaneval
from colever.tasks.criteria.unit_tests import UnitTests, program_in
from colever.tasks.load import check_task, load_task
from colever.tasks.sandbox.host import level_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows()) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def walled() -> None:
    try:
        level_for("required")
    except InfrastructureError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("walled")
class TestScores:
    @pytest.mark.parametrize("place", range(12))
    def test_the_canonical_solution_scores_one_in_every_form(self, place: int) -> None:
        row = rows()[place]
        example, whole = humaneval.example(row), row["prompt"] + row["canonical_solution"]
        for code in (whole, row["canonical_solution"], f"Here it is:\n```python\n{whole}```\nDone."):
            prediction = dspy.Prediction(code=code)
            assert humaneval.TESTS(example, prediction) == 1.0
            assert humaneval.passes_all(example, prediction)

    @pytest.mark.parametrize("place", range(12))
    def test_nothing_and_the_stub_score_zero(self, place: int) -> None:
        example = humaneval.example(rows()[place])
        for code in ("", rows()[place]["prompt"], "I cannot.", "```python\n", None):
            assert humaneval.TESTS(example, dspy.Prediction(code=code)) < 1.0
            assert not humaneval.passes_all(example, dspy.Prediction(code=code))

    def test_partial_credit_or_all_or_nothing(self) -> None:
        example, prediction = humaneval.example(rows()[0]), dspy.Prediction(code="def double(x):\n    return x * x")
        assert UnitTests("code", setup="prompt")(example, prediction) == pytest.approx(2 / 3)
        assert UnitTests("code", setup="prompt", partial=False)(example, prediction) == 0.0
        verdict = humaneval.TESTS.verdict(example, prediction)
        assert (verdict.passed, verdict.total) == (2, 3)

    def test_the_seed_model_is_evaluated(self, file: Path) -> None:
        task, engine = replace(humaneval.task(file), max_tokens=48), open_engine("seed")
        evaluation = evaluate(task.base_candidate(), task, engine, "test")
        assert len(evaluation.scores) == 6
        assert evaluation.infrastructure_failures == 0
        assert 0 <= evaluation.score <= 1
        assert not math.isnan(evaluation.gold or 0)


def test_of_several_blocks_the_one_with_the_function_counts() -> None:
    text = "```python\nx = 1\n```\nthen\n```py\ndef f(x):\n    return x\n```\n"
    assert program_in(text, "f") == "def f(x):\n    return x\n"
    assert program_in(text, "g") == "x = 1\n"
    assert program_in("def f(x): return x") == "def f(x): return x"
    assert program_in("```python\ndef f(x): return x") == "def f(x): return x"  # cut short
    assert program_in("``" + "`\n" * 50_000) is not None


def test_the_task_holds_together(file: Path) -> None:
    task = humaneval.task(file)
    check_task(task)
    assert (len(task.train), len(task.dev), len(task.test)) == (3, 3, 6)
    assert task.digest() == humaneval.task(file).digest() != humaneval.task(file, seed=1).digest()
    assert {e.id for s in ("train", "dev", "test") for _, e in task.examples(s)} == {r["task_id"] for r in rows()}
    assert len(Path(humaneval.__file__).read_text(encoding="utf-8").splitlines()) < 120
    digest = task.digest()
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # its checksum
    assert humaneval.task(file).digest() != digest


def test_a_compressed_file_is_read(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert list(humaneval.rows_of(packed).rows) == list(humaneval.rows_of(file).rows) == rows()
    assert humaneval.task(packed).origin.startswith("rows.jsonl.gz, sha256 ")
    separated = [row | {"prompt": f"# \u2028 \x0c\x85\n{row['prompt']}"} for row in rows()]  # no ends of lines in JSON
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in separated), encoding="utf-8")
    assert list(humaneval.rows_of(file).rows) == separated


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "rows.jsonl: no row in it; accepted: a file"),
        ("{}\n", "rows.jsonl: line 1 has no 'task_id'; its fields are none"),
        (json.dumps(rows()[0] | {"task_id": 1}) + "\n", "row 1 has no text in task_id"),
        (json.dumps(rows()[0]) + "\nno JSON\n", "rows.jsonl: line 2 is not JSON"),
        ("".join(json.dumps(row) + "\n" for row in rows()[:7]), r"has 1 example.s.; .* \(rows of rows.jsonl, sha256"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file: Path, text: str, said: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=said):
        load_task("humaneval", str(file))


def test_rows_that_are_nowhere_are_an_error(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(TaskError, match=f"--data {tmp_path}: the folder has no test.jsonl; accepted in it"):
        humaneval.task(tmp_path)
    with pytest.raises(TaskError, match=r"none.jsonl: no such file; accepted: a file"):
        humaneval.task(tmp_path / "none.jsonl")
    (tmp_path / "no.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(TaskError, match=r"no.jsonl.gz: not .jsonl as UTF-8"):
        humaneval.task(tmp_path / "no.jsonl.gz")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"no/such cannot be loaded from the hub \(.*; give --data PATH: a file"):
        humaneval.task("no/such")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"memory_mb": 1.5}, "memory_mb is 1.5"),
        ({"isolation": "none"}, "isolation is"),
    ],
)
def test_settings_are_held_to_what_is_accepted(settings, said: str) -> None:
    with pytest.raises(TaskError, match=rf"unit_tests: {said}.*accepted"):
        UnitTests("code", **settings)


def test_a_missing_label_is_named() -> None:
    with pytest.raises(TaskError, match="the example has no field 'entry_point'; it has: a"):
        UnitTests("code")(dspy.Example(a=1), dspy.Prediction(code="x"))
