"""Studies side by side: seeds in one row, who is ahead, what reached the target, and what cannot be put together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_sweep import run
from toy import right, toy_task

from colever.comparison import ComparisonRow
from colever.config import several
from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.comparison import compare
from colever.optimizers.study import StudyFolder
from colever.tasks.rubric import Criterion, Rubric
from colever.tracking import comparison
from colever.types import Cost, Evaluation


def studies(home: Path, *seeds: int, **changes: object) -> list[str]:
    for seed in seeds:
        run(home, seed=seed, **changes)
    return [f"toy-toy-s{seed}" for seed in seeds]


def test_one_study_is_its_own_report(tmp_path: Path) -> None:
    report = run(tmp_path)
    (row,) = compare(tmp_path, ["toy"])
    assert (row.task, row.model, row.seeds, row.studies) == ("toy", "toy", (0,), ("toy-toy-s0",))
    assert row.table == {name: cell.gold for name, cell in report.table.items()}
    assert {n: row.effects[n] for n in ("prompt", "weights", "interaction")} == {
        n: report.effects[n] for n in ("prompt", "weights", "interaction")
    }
    difference = row.effects["ahead"]
    assert difference.value == pytest.approx(row.table["weights"].value - row.table["prompt"].value)  # type: ignore[union-attr]
    assert row.won == ("" if not difference.resolved else "weights" if difference.value > 0 else "prompt")
    assert row.cost == Cost(**{**vars(report.cost - base_on(tmp_path, "dev").cost)})


def base_on(home: Path, split: str) -> Evaluation:
    folder = StudyFolder(home, "toy-toy-s0")
    state = folder.state()
    assert state is not None
    found = folder.evaluations(state)(state.base, split)
    assert found is not None
    return found


def test_seeds_of_one_setting_share_a_row(tmp_path: Path) -> None:
    names = studies(tmp_path, 0, 1, 2)
    run(tmp_path, seed=0, study="longer", **{"prompt.candidates": 3})
    rows = compare(tmp_path, [])
    assert sorted(row.seeds for row in rows) == [(0,), (0, 1, 2)]
    (row,) = compare(tmp_path, names)
    single = [compare(tmp_path, [name])[0] for name in names]
    for name in ("base", "prompt", "weights", "both"):
        assert row.table[name].value == pytest.approx(sum(s.table[name].value for s in single) / 3)  # type: ignore[union-attr]
    gain = row.table["both"].value - row.table["base"].value  # type: ignore[union-attr]
    assert row.effects["prompt"].value + row.effects["weights"].value == pytest.approx(gain)
    assert row.cost.rollouts == sum(s.cost.rollouts for s in single)


def test_a_seed_counts_once(tmp_path: Path) -> None:
    names = studies(tmp_path, 0, 1)
    run(tmp_path, seed=1, study="again")
    (row,) = compare(tmp_path, [])
    assert row.studies == (names[0], "again")


def test_what_reached_the_target_is_the_cheapest(tmp_path: Path) -> None:
    run(tmp_path, task=toy_task(target=0.5))
    (row,) = compare(tmp_path, ["toy"])
    assert row.reached is not None
    assert row.reached.seeds == 1
    assert row.reached.cost is not None
    assert row.reached.cost.rollouts > 0
    (never,) = compare_of(tmp_path / "never", toy_task(target=1.0))
    assert (never.reached.seeds, never.reached.lever, never.reached.cost) == (0, "", None)


def compare_of(home: Path, task: object) -> list:
    run(home, task=task)
    return compare(home, ["toy"])


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished study"):
        compare(tmp_path, [])
    run(tmp_path)
    with pytest.raises(UsageError, match="no study and no task"):
        compare(tmp_path, ["toy", "other"])
    run(tmp_path, study="fewer", seed=1, task=toy_task(test=toy_task().test[:40]))
    assert [row.examples for row in compare(tmp_path, ["toy-toy-s0", "fewer"])] == [80, 40]  # another task: a row each


def test_the_table_shows_what_the_rows_say(tmp_path: Path) -> None:
    from rich.console import Console

    studies(tmp_path, 0, 1)
    rows = compare(tmp_path, [])
    console = Console(width=220, record=True)
    console.print(comparison.render(rows))
    text = console.export_text()
    assert "toy" in text
    assert "over seeds and test examples" in text
    assert f"{100 * rows[0].table['both'].value:.1f}" in text  # type: ignore[union-attr]
    comparison.draw(rows).savefig(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5_000
    assert comparison.to_json(rows)[0]["table"]["base"]["value"] == base_on(tmp_path, "test").gold


def test_several_tasks_and_seeds_are_a_study_each() -> None:
    one, two = (load_config(flags={"task": t}) for t in ("arithmetic", "routing"))
    assert several([one], 1) == [one]
    assert [c.study_name for c in several([one], 2)] == ["arithmetic-seed-s0", "arithmetic-seed-s1"]
    assert [(c.task, c.seed) for c in several([one, two], 2)] == [
        ("arithmetic", 0), ("routing", 0), ("arithmetic", 1), ("routing", 1),
    ]  # fmt: skip
    named = load_config(flags={"task": "routing", "study": "mine", "seed": 4})
    assert [c.study_name for c in several([named], 2)] == ["mine-s4", "mine-s5"]
    assert [c.study_name for c in several([named, named], 1)] == ["mine-routing-s4", "mine-routing-s4"]


def strict(weight: float = 1.0) -> dict[str, Any]:
    """What a study has that is scored by a file: the path as it is spelled, and the rubric in it."""
    criteria = [Criterion("right", right, weight), Criterion("short", lambda e, p, s: len(p.answer) < 9)]
    return {"task": toy_task(rubric=Rubric(criteria))}


def shown(rows: Sequence[ComparisonRow]) -> str:
    from rich.console import Console

    console = Console(width=260, record=True)
    console.print(comparison.render(rows))
    return console.export_text()


FILE = """criterion:
- {name: right, kind: task}
- {name: short, kind: length, high: 9, unit: characters, field: answer}
"""


def test_rows_of_one_task_say_which_rubric_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "strict.yaml").write_text(FILE)
    run(tmp_path, trials=1)
    (alone,) = compare(tmp_path, [])
    assert re.fullmatch(r"own [0-9a-f]{6}", alone.rubric)
    assert "rubric" not in shown([alone]).split("Gold:")[0]  # a column only where it tells rows apart
    run(tmp_path, trials=1, study="strict", rubric="one/strict.yaml", **strict())
    run(tmp_path, trials=1, study="stricter", rubric="other/strict.yaml", **strict(3))
    rows = compare(tmp_path, [])
    names = [row.rubric for row in rows]
    assert len(set(names)) == 3
    assert [name.split()[0] for name in names] == ["own", "strict.yaml", "strict.yaml"]
    text = shown(rows)
    assert all(text.count(name) >= 3 for name in names)
    assert [row["rubric"] for row in comparison.to_json(rows)] == names
    comparison.draw(rows)


def test_another_spelling_of_a_path_is_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strict.yaml").write_text(FILE)
    for seed, at in enumerate(("", "./", f"{tmp_path}/")):
        run(tmp_path, trials=1, seed=seed, rubric=f"{at}strict.yaml", data=f"{at}x.csv", **strict())
    (row,) = compare(tmp_path, [])
    assert row.seeds == (0, 1, 2)


def test_a_study_from_before_rubrics_were_named_is_still_a_row(tmp_path: Path) -> None:
    run(tmp_path, trials=1)
    folder = StudyFolder(tmp_path, "toy-toy-s0")
    state = folder.state()
    assert state is not None
    folder.write(replace(state, rubric=""))
    assert [row.rubric for row in compare(tmp_path, [])] == ["own"]
