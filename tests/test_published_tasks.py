"""Tasks whose rows are published elsewhere: right answers score 1 through the whole path, and both levers run.

On the published files where they are there (``COLEVER_DATA``, or ``shared/data`` beside the checkout), and on a few
rows of the same form always.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import dspy
import pytest
from test_tasks import Scripted, field

from colever.errors import TaskError
from colever.loading import load_config
from colever.optimizers.study import StudyFolder
from colever.optimizers.sweep import sweep
from colever.pipelines.rollout import run_rollouts
from colever.studies import open_study
from colever.tasks.data import Source, read_rows, read_splits
from colever.tasks.load import PUBLISHED, check_task, load_task
from colever.tasks.task import Task

PUBLISHED_FILES = Path(os.environ.get("COLEVER_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = "amber birch cedar delta ember fjord grove harbor inlet jetty knoll larch".split()


def write_gsm8k(folder: Path) -> Path:
    rng, file = Random(1), folder / "words.jsonl"
    rows = []
    for name in WORDS * 2:
        a, b = rng.randint(1000, 4000), rng.randint(2, 40)
        answer = f"{name} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b:,}"
        rows.append({"question": f"{name} had {a} and got {b}. How many?", "answer": answer})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_banking77(folder: Path) -> Path:
    file = folder / "messages.csv"
    with file.open("w", newline="") as opened:
        out = csv.writer(opened)
        out.writerow(["text", "category"])
        for place, word in enumerate(WORDS * 4):
            out.writerow([f"my {word}, number {place}, is lost", ("card_lost", "card_fee", "top_up")[place % 3]])
    return file


def write_hover(folder: Path) -> Path:
    articles = [{"title": f"{word} {n}", "text": f"{word} {n} lies by {WORDS[-n]}"} for word in WORDS for n in (1, 2)]
    titles = [article["title"] for article in articles]
    claims = [
        {
            "claim": f"claim {i} of {' and '.join(found)}",
            "supporting_facts": [[title, 0] for title in found],
            "num_hops": 4 - (i % 5 == 0),
        }
        for i, found in enumerate(Random(2).sample(titles, 4) for _ in range(40))
    ]
    for name, rows in {"corpus": articles, "train": claims[:25], "test": claims[25:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


WRITTEN = {"gsm8k": write_gsm8k, "banking77": write_banking77, "banking77-3": write_banking77, "hover": write_hover}
REAL = {"gsm8k": "gsm8k_train.jsonl", "banking77": "banking77_train.csv", "banking77-5": "banking77_train.csv"}


def answers(task: Task, right: bool) -> Callable[[str], dict[str, object]]:
    """What a perfect model says, or one that is wrong in the right format."""
    rows = [example for split in ("train", "dev", "test") for _, example in task.examples(split)]
    by_input = {str(next(iter(row.inputs().toDict().values()))): row for row in rows}

    def gsm8k(prompt: str) -> dict[str, object]:
        row = by_input[field(prompt, "question")]
        return {"reasoning": row.reasoning, "answer": row.answer if right else "-1"}

    def banking77(prompt: str) -> dict[str, object]:
        intent = by_input[field(prompt, "message")].intent
        other = next(row.intent for row in rows if row.intent != intent)
        return {"reasoning": "It says so.", "intent": intent if right else other}

    def routed(prompt: str) -> dict[str, object]:
        team = by_input[field(prompt, "ticket")].team
        return {"team": team if right else next(row.team for row in rows if row.team != team)}

    def hover(prompt: str) -> dict[str, object]:
        titles, hop = by_input[field(prompt, "claim")].titles, prompt.count("noted")
        if "[[ ## passages ## ]]" in prompt:
            return {"reasoning": "noted", "new_notes": '["noted"]', "titles": json.dumps(titles if right else [])}
        return {"reasoning": "Search.", "query": titles[hop % 4] if right else "nothing of the kind"}

    said = {"gsm8k": gsm8k, "banking77": banking77, "hover": hover}
    return said.get(task.name, routed)


def run(task: Task, right: bool, split: str = "dev"):
    lm = dspy.LM("scripted/task", engine=Scripted(answers(task, right)), cache=False)
    rows = task.examples(split)[:24]
    return run_rollouts(task.program(), rows, lm=lm, score=task.score, fail=task.fail, concurrency=1)


def check(task: Task) -> None:
    check_task(task)
    assert all((r.failure, r.score.total, r.score.gold) == (None, 1.0, 1.0) for r in run(task, right=True))
    assert all(r.score.total < 0.5 and r.score.gold == 0.0 for r in run(task, right=False))


@pytest.mark.parametrize("name", WRITTEN)
def test_right_answers_score_one_and_wrong_ones_less(name: str, tmp_path: Path) -> None:
    task = load_task(name, str(WRITTEN[name](tmp_path)))
    check(task)
    assert "not a published file" in task.origin
    assert load_task(name, str(tmp_path if name == "hover" else next(tmp_path.iterdir()))).digest() == task.digest()


@pytest.mark.parametrize("name", REAL)
def test_the_published_rows(name: str) -> None:
    file = PUBLISHED_FILES / REAL[name]
    if not file.is_file():
        pytest.skip(f"{file} is not there: COLEVER_DATA names a folder with it")
    task = load_task(name, str(file))
    check(task)
    sizes = {"gsm8k": (256, 256, 512), "banking77": (250, 250, 500), "banking77-5": (226, 226, 453)}[name]
    assert (len(task.train), len(task.dev), len(task.test)) == sizes
    assert "the published training set" in task.origin


def test_each_file_is_short() -> None:
    folder = Path(__file__).parents[1] / "tasks"
    assert all(len((folder / f"{name}.py").read_text().splitlines()) < 120 for name in PUBLISHED)


def test_the_test_rows_of_a_folder_are_its_own(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_gsm8k(tmp_path).read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:16]))
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as packed:
        packed.writelines(json.dumps(row) + "\n" for row in rows[12:])
    task = load_task("gsm8k", str(tmp_path))
    assert (len(task.train), len(task.dev), len(task.test)) == (8, 8, 8)  # four of test's twelve are train's
    first = {row["question"] for row in rows[:16]}
    assert {e.question for e in [*task.train, *task.dev]} == first
    assert not {e.question for e in task.test} & first


SOURCE = Source("some/hub", ("text", "label"), spellings={"label_text": "label"})


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', r"line 2 has no 'label'; its fields are text"),
    ("a.jsonl", '{"text": "x", "label": 1}\nnothing\n', "line 2 is not JSON"),
    ("a.jsonl", "3\n", "line 1 is a int"),
    ("a.jsonl", "", "no row in it"),
    ("a.json", '{"text": "x"}', "a dict; accepted: a list of rows"),
    ("a.csv", "text,category\nx,y\n", r"row 1 has no 'label'; its fields are text, category"),
    ("a.csv", "text,label\nx\n", "row 1 has no 'label'"),
    ("a.parquet", "text", "not a parquet file"),
    ("a.txt", "text", r"\.txt is not known; accepted: \.jsonl, \.json, \.csv, \.parquet"),
    ("a.jsonl.gz", "text", "not .jsonl as UTF-8"),
])  # fmt: skip
def test_rows_that_cannot_be_read_are_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=said) as raised:
        read_rows(SOURCE, tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_other_spellings_kinds_and_origins(tmp_path: Path) -> None:
    import pandas

    rows = [{"text": f"t{i}", "label_text": "a\nb", "more": i} for i in range(8)]
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    read = [read_rows(SOURCE, tmp_path / f"a.{kind}") for kind in ("parquet", "csv", "json")]
    assert all(r.rows == tuple({"text": f"t{i}", "label": "a\nb"} for i in range(8)) for r in read)
    assert len({r.origin.split(", ")[1] for r in read}) == 3
    *splits, _ = read_splits(SOURCE, tmp_path / "a.csv", (1, 1, 2), dspy.Example, seed=0)
    assert [len(rows) for rows in splits] == [1, 1, 2]


@pytest.mark.parametrize(("name", "data", "said"), [
    ("arithmetic", "x.csv", "makes its own rows; accepted: with banking77, gsm8k, hover, humaneval"),
    ("gsm8k", "/nowhere/x.jsonl", "--data /nowhere/x.jsonl: no such file"),
    ("hover", "/nowhere", "--data FOLDER is needed, with corpus.jsonl"),
    ("banking77-x", None, "unknown task 'banking77-x'"),
])  # fmt: skip
def test_data_that_is_not_there(name: str, data: str | None, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task(name, data)


def test_without_a_file_and_without_the_hub_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"openai/gsm8k cannot be loaded from the hub .*; give --data PATH: a file"):
        load_task("gsm8k")


@pytest.mark.parametrize(("name", "tokens"), [("gsm8k", 48), ("banking77", 24), ("banking77-3", 24), ("hover", 32)])
def test_both_levers_run_on_the_seed_model(name: str, tokens: int, tmp_path: Path) -> None:
    """Scores as they come: what is tested is that rollouts, levers, report and a second run go through."""
    (tmp_path / "rows").mkdir()
    given = {"task": name, "data": str(WRITTEN[name](tmp_path / "rows")), "schedules": ["p,w"], "trials": 1}
    small = {"prompt.candidates": 2, "prompt.screen": 2, "prompt.examples": 2, "prompt.finalists": 1, "prompt.demos": 1}
    small |= {"weights.updates": 1, "weights.examples_per_update": 2, "weights.group_size": 2}
    config = load_config(flags=given, overrides=small)
    task, engine = open_study(config)
    task = dataclasses.replace(task, max_tokens=tokens, train=task.train[:4], dev=task.dev[:4], test=task.test[:4])
    report = sweep(config, task, engine, tmp_path / "home")
    assert report.finished
    assert not report.failures
    assert [pulled.lever for pulled in report.path] == ["prompt", "weights"]
    assert StudyFolder(tmp_path / "home", config.study_name).manifest()["origin"] == task.origin
    spent = engine.meter
    assert sweep(config, task, engine, tmp_path / "home").table == report.table
    assert engine.meter == spent
