"""Tuning a rubric against gold: what it reads, chooses, and goes on with; the model is a rule, all else is real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from filelock import FileLock
from judging import judge
from judging import script as judged
from judging import settings as judging
from scripted_openai import Fault, ScriptedOpenAI
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, right, toy_task

from colever.config import ProposerSettings, SweepConfig
from colever.engines.bench import seated
from colever.errors import BudgetExhausted, ColeverError, TaskError, UsageError
from colever.optimizers import rubric_space
from colever.optimizers.budget import Budget
from colever.optimizers.designer import Designer
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.proposer import open_proposer
from colever.optimizers.statistics import shared_means
from colever.optimizers.tuning import tune
from colever.optimizers.tuning_plan import TuningPlan, cut
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.rubric_file import load_rubric
from colever.tasks.rubric_tables import changes, tables_in, tables_of, write_tables
from colever.tasks.task import Task
from colever.tracking import store
from colever.tracking.tuning import track
from colever.tuned import TriedRubric, Tuning


def wrong(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> float:
    return 1 - right(example, prediction)


def digits(example: dspy.Example, prediction: dspy.Prediction, steps: Any) -> bool:
    return bool(prediction.answer.strip().isdigit())


MISLED = Rubric([Criterion("wrong", wrong, 0.6), Criterion("digits", digits, 0.3), Criterion("right", right, 0.1)])
PLAN = TuningPlan("p", trials=6, designs=0, share=0.5, seeds=2)


def misled_task(**changed: Any) -> Task:
    """Its rubric pays more for wrong answers than for right ones: the prompt lever then drops the good wording."""
    return toy_task(rubric=MISLED, **changed)


def config(**changed: Any) -> SweepConfig:
    prompt = {"demos": 0, "candidates": 4, "examples": 20, "screen": 20, "finalists": 2}
    return SweepConfig(**{"task": "toy", "study": "t", "prompt": prompt, "sampler": "tpe", **changed})


def levers(prompt: Any, weights: Any) -> dict[Any, Any]:
    return {"prompt": PromptLever(prompt, None), "weights": ToyWeightLever(ToyWeightSettings())}


def tuned(home: Path, task: Task | None = None, plan: TuningPlan = PLAN, **given: Any) -> Tuning:
    task = task or misled_task()
    settings = given.pop("config", config())
    tables = given.pop("tables", tables_of(task.rubric))
    made: Tuning = tune(settings, task, tables, ToyEngine(), home, plan, levers=levers, **given)  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuning, Path]:
    home = tmp_path_factory.mktemp("tuned")
    return tuned(home), home


def test_a_rubric_that_misleads_is_mended_and_the_mending_is_measured(found: tuple[Tuning, Path]) -> None:
    tuning, home = found
    assert len(tuning.tried) == 6
    assert tuning.own.how == "own"
    assert not tuning.own.changes
    assert tuning.best > 0
    assert tuning.tuned.gold is not None
    assert tuning.own.gold is not None
    assert tuning.tuned.gold > tuning.own.gold + 0.1
    assert tuning.bought is not None
    assert tuning.bought.resolved
    assert tuning.bought.value > 0.1
    assert tuning.bought.over == "seeds and examples"
    assert any("of the weight" in line for line in tuning.tuned.changes)
    mended = load_rubric(home / "tunings" / "t" / "tuned.yaml", misled_task())
    assert mended.digest() == tuning.tuned.digest
    assert changes(MISLED, mended) == list(tuning.tuned.changes)


def test_the_same_command_finds_everything_stored(found: tuple[Tuning, Path]) -> None:
    tuning, home = found
    engine = ToyEngine()
    again = tune(config(), misled_task(), tables_of(MISLED), engine, home, PLAN, levers=levers)  # type: ignore[arg-type]
    assert engine.calls == 0
    assert replace(again, cost=tuning.cost) == tuning
    assert again.cost.rollouts == tuning.cost.rollouts  # what is read is charged as if it were run


class Interrupted:
    """Progress that is interrupted at the n-th word."""

    def __init__(self, after: int) -> None:
        self.left = after

    def update(self, done: int, total: int, text: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [5, 700])
def test_an_interrupt_changes_nothing(after: int, found: tuple[Tuning, Path], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path, progress=Interrupted(after))
    again = tuned(tmp_path)
    assert replace(again, cost=found[0].cost) == found[0]


def test_more_trials_go_on_from_those_that_were_tried(found: tuple[Tuning, Path], tmp_path: Path) -> None:
    tuned(tmp_path, plan=replace(PLAN, trials=3, seeds=0))
    assert tuned(tmp_path).tried == found[0].tried


def test_gold_of_dev_and_test_chooses_nothing(found: tuple[Tuning, Path], tmp_path: Path) -> None:
    """Where dev's and test's gold lie, all that is tried and chosen stays."""
    train = {row.question for row in misled_task().train}

    def lying(example: dspy.Example, prediction: dspy.Prediction) -> float:
        truth = right(example, prediction)
        return truth if example.question in train else 1 - truth

    other = tuned(tmp_path, misled_task(gold=lying))
    assert other.tried == found[0].tried
    assert other.best == found[0].best
    assert other.bought is not None
    assert other.bought.value < 0  # read on test, it is what the liar says


def test_levers_see_nothing_of_the_tuning_split(tmp_path: Path) -> None:
    seen: set[str] = set()

    def spied(prompt: Any, weights: Any) -> dict[Any, Any]:
        class Spy(PromptLever):
            def improve(self, candidate: Any, task: Task, *rest: Any) -> Any:
                seen.update(row.question for row in task.train)
                assert not task.watched
                assert task.gold is None
                return super().improve(candidate, task, *rest)

        return {"prompt": Spy(prompt, None)}

    task = misled_task()
    tune(config(), task, tables_of(MISLED), ToyEngine(), tmp_path, PLAN, levers=spied)  # type: ignore[arg-type]
    rest, tuning = cut(task.train, 0.5, 0)
    assert seen == {row.question for row in rest}
    assert not seen & {row.question for row in tuning}
    assert len(rest) + len(tuning) == len(task.train)


def test_an_own_rubric_that_is_best_stays(tmp_path: Path) -> None:
    task = toy_task(rubric=Rubric([Criterion("right", right)]))
    tuning = tuned(tmp_path, task, replace(PLAN, trials=3))
    assert tuning.best == 0
    assert tuning.bought is None
    assert not tuning.test
    assert load_rubric(tmp_path / "tunings" / "t" / "tuned.yaml", task).digest() == task.rubric.digest()


def test_a_pull_that_fails_leaves_the_base(tmp_path: Path) -> None:
    class Failing(ToyWeightLever):
        def improve(self, *given: Any) -> Any:
            raise RuntimeError("all groups are constant")

    def made(prompt: Any, weights: Any) -> dict[Any, Any]:
        return {"weights": Failing(ToyWeightSettings())}

    plan = TuningPlan("w", trials=2, designs=0, seeds=0)
    tuning = tune(config(), misled_task(), tables_of(MISLED), ToyEngine(), tmp_path, plan, levers=made)  # type: ignore[arg-type]
    assert {t.gold for t in tuning.tried} == {tuning.base}
    assert all("all groups are constant" in t.error for t in tuning.tried)
    assert tuning.best == 0


def test_a_budget_that_ends_is_said(tmp_path: Path, found: tuple[Tuning, Path]) -> None:
    most = found[0].cost.rollouts
    tuning = tuned(tmp_path, config=config(budget={"rollouts": most // 2}))
    assert any("rollouts" in note for note in tuning.notes)
    with pytest.raises(BudgetExhausted):
        tuned(tmp_path / "other", config=config(budget={"rollouts": 100}))
    assert tuned(tmp_path).tried == found[0].tried  # with the budget lifted it goes on


def test_a_cap_reached_among_the_fresh_seeds_keeps_what_was_found(tmp_path: Path, found: tuple[Tuning, Path]) -> None:
    tuning = tuned(tmp_path, config=config(budget={"rollouts": found[0].cost.rollouts - 1}))
    assert tuning.tried == found[0].tried
    assert tuning.seeds == 1
    assert tuning.bought is not None
    assert tuning.bought.over == "examples"
    assert "Fresh seeds end at 1 of 2" in tuning.notes[0]


def test_a_cap_on_each_round_ends_a_pull_and_not_the_tuning(tmp_path: Path) -> None:
    tuning = tuned(tmp_path, plan=replace(PLAN, trials=2), config=config(round_budget={"rollouts": 5}))
    assert [t.gold for t in tuning.tried] == [tuning.base] * 2
    assert all(t.error.startswith("round_budget: rollouts=5 is reached") for t in tuning.tried)


def test_a_rubric_that_cannot_be_read_claims_no_folder(tmp_path: Path) -> None:
    tables = tables_of(MISLED)
    with pytest.raises(TaskError, match="unknown key 'wieght'"):
        tuned(tmp_path, tables=[{**tables[0], "wieght": 1.0}, *tables[1:]])
    assert tuned(tmp_path, tables=tables, plan=replace(PLAN, trials=2, seeds=0)).own.gold is not None


@pytest.mark.parametrize(
    ("task", "plan", "message"),
    [
        (lambda: misled_task(gold=None), {}, "has no gold"),
        (lambda: misled_task(train=toy_task().train[:12]), {}, "train has 12 examples"),
        (misled_task, {"trials": 1}, "--trials 1: accepted: 2 or more"),
        (misled_task, {"share": 1.0}, "--share 1.0"),
        (misled_task, {"designs": -1}, "--designs -1"),
        (misled_task, {"seeds": -1}, "--seeds -1"),
    ],
)
def test_what_cannot_be_tuned_is_told_first(
    task: Callable[[], Task], plan: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((TaskError, UsageError), match=message):
        tuned(tmp_path, task(), replace(PLAN, **plan))


def test_another_tuning_does_not_share_its_folder(tmp_path: Path) -> None:
    plan = replace(PLAN, trials=2, seeds=0)
    tuned(tmp_path, plan=plan)
    with pytest.raises(UsageError, match="another --study name"):
        tuned(tmp_path, plan=replace(plan, share=0.4))
    with pytest.raises(UsageError, match="another --study name"):
        tuned(tmp_path, toy_task(), plan)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tunings" / "t"
    folder.mkdir(parents=True)
    with FileLock(folder / "tuning.lock"), pytest.raises(UsageError, match="another process tunes in"):
        tuned(tmp_path)


# --- designed by a model ---------------------------------------------------------------------------

DESIGN = """```yaml
criterion:
  - {name: right, kind: task, weight: 1.0}
  - {name: number, kind: answer_type, field: answer, type: int, weight: 0.2, form: true}
```"""
CODE = "criterion:\n  - {name: right, kind: python, check: 'os:system', weight: 1.0}"
NO_FIELD = "criterion:\n  - {name: right, kind: exact, field: anser, weight: 1.0}"


def wrapped(text: str) -> str:
    return f"[[ ## rubric ## ]]\n{text}\n\n[[ ## completed ## ]]"


def designed(home: Path, replies: Sequence[str], plan: TuningPlan) -> tuple[Tuning, ScriptedOpenAI]:
    with ScriptedOpenAI([wrapped(reply) for reply in replies]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        made = config(proposer=settings.model_dump())
        return tuned(home, plan=plan, config=made, proposer=open_proposer(settings, ToyEngine())), server


def test_a_model_designs_a_rubric_from_what_fails(tmp_path: Path) -> None:
    plan = TuningPlan("p", trials=3, designs=2, seeds=2)
    tuning, server = designed(tmp_path, [DESIGN, DESIGN], plan)
    first = tuning.tried[1]
    assert first.how == "design"
    assert "number: new, 17% of the weight" in first.changes
    assert "wrong: left out, was 60% of the weight" in first.changes
    assert tuning.best == 1
    assert tuning.bought is not None
    assert tuning.bought.value > 0.1
    asked = server.prompts[0]
    assert "predictor solve: question -> answer" in asked
    assert "gold 0.00" in asked  # rollouts that fail
    assert "rubric 0, gold " in asked
    assert "unit_tests:" not in asked
    assert "judge:" not in asked
    assert "rubric 1, gold " in server.prompts[1]  # the next one hears how this one did
    assert tuning.cost.proposer_calls == 2


def test_a_design_that_cannot_be_used_is_told_what_is_wrong(tmp_path: Path) -> None:
    plan = TuningPlan("p", trials=2, designs=1, seeds=0)
    tuning, server = designed(tmp_path, [CODE, NO_FIELD, DESIGN], plan)
    assert tuning.tried[1].how == "design"
    assert not tuning.tried[1].error
    assert "kind 'python': accepted here: exact" in server.prompts[1]
    assert "anser" in server.prompts[2]


def test_designs_that_never_fit_are_left_out_and_the_search_goes_on(tmp_path: Path) -> None:
    plan = TuningPlan("p", trials=4, designs=1, seeds=0)
    tuning, _ = designed(tmp_path, ["no rubric at all", CODE, "criterion: []"], plan)
    assert tuning.tried[1].gold is None
    assert "the proposer's 3 designs cannot be used" in tuning.tried[1].error
    assert [t.how for t in tuning.tried] == ["own", "design", "search", "search"]


def test_an_interrupted_design_asks_nothing_twice(tmp_path: Path) -> None:
    plan = TuningPlan("p", trials=2, designs=1, seeds=0)
    first, server = designed(tmp_path, [DESIGN], plan)
    with ScriptedOpenAI([]) as other:  # it has no reply to give
        settings = ProposerSettings(model=f"scripted@{other.address}", retry_wait=0.01)
        again = config(proposer={**settings.model_dump(), "model": f"scripted@{server.address}"})
        second = tuned(tmp_path, plan=plan, config=again, proposer=open_proposer(settings, ToyEngine()))
        assert not other.asked
    assert second.tried == first.tried


def test_a_pull_that_failed_is_not_run_again_for_the_next_design(tmp_path: Path) -> None:
    pulls = []

    class Failing(ToyWeightLever):
        def improve(self, *given: Any) -> Any:
            pulls.append(given)
            raise RuntimeError("all groups are constant")

    def made(prompt: Any, weights: Any) -> dict[Any, Any]:
        return {"weights": Failing(ToyWeightSettings())}

    plan = TuningPlan("w", trials=3, designs=2, seeds=0)
    with ScriptedOpenAI([wrapped(DESIGN), wrapped(DESIGN)]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        lm = open_proposer(settings, ToyEngine())
        tune(config(), misled_task(), tables_of(MISLED), ToyEngine(), tmp_path, plan, levers=made, proposer=lm)  # type: ignore[arg-type]
    assert len(pulls) == 3


def test_a_design_that_breaks_on_an_answer_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    task = misled_task(train=[dspy.Example(**r, note=r.answer).with_inputs("question") for r in toy_task().train])
    breaks = DESIGN.replace("{name: right, kind: task,", "{name: right, kind: exact, field: answer, label: note,")
    plan = TuningPlan("p", trials=3, designs=1, seeds=0)
    with ScriptedOpenAI([wrapped(breaks)]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        tuning = tuned(tmp_path, task, plan, proposer=open_proposer(settings, ToyEngine()))
    assert tuning.tried[1].gold is None
    assert "criterion 'right'" in tuning.tried[1].error
    assert tuning.tried[2].gold is not None


def test_a_design_may_have_what_the_own_rubric_has_and_no_other_code(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text(
        "def exact(example, prediction, steps):\n    return prediction.answer == example.answer\n"
    )
    own = [{"name": "mine", "kind": "python", "check": f"{tmp_path / 'checks.py'}:exact"}, *tables_of(MISLED)]
    smuggled = "criterion:\n  - {name: mine, kind: task, check: 'os:system', weight: 1.0}"
    good = "criterion:\n  - {name: renamed, kind: task, criterion: mine, weight: 0.7}\n  - {name: right, kind: task}"
    plan = TuningPlan("p", trials=2, designs=1, seeds=0)
    with ScriptedOpenAI([wrapped(smuggled), wrapped(good)]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        tuning = tuned(tmp_path, plan=plan, tables=own, proposer=open_proposer(settings, ToyEngine()))
    assert not tuning.tried[1].error
    assert "unknown key 'check'" in server.prompts[1]
    assert tuning.tried[1].tables[0] == {**own[0], "name": "renamed", "weight": 0.7}


def test_a_task_whose_labels_make_no_answers_may_have_designs(tmp_path: Path) -> None:
    def rows(of: Sequence[dspy.Example]) -> list[dspy.Example]:
        return [dspy.Example(question=r.question, truth=r.answer).with_inputs("question") for r in of]

    def true(example: dspy.Example, prediction: dspy.Prediction, steps: Any = ()) -> float:
        return float(prediction.answer.strip() == example.truth)

    toy = toy_task()
    rubric = Rubric([Criterion("right", true), Criterion("digits", digits)])
    task = toy_task(rubric=rubric, gold=true, train=rows(toy.train), dev=rows(toy.dev), test=rows(toy.test), watched={})
    plan = TuningPlan("p", trials=2, designs=1, seeds=0)
    with ScriptedOpenAI([wrapped(DESIGN)]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        tuning = tuned(tmp_path, task, plan, proposer=open_proposer(settings, ToyEngine()))
    assert not tuning.tried[1].error


def test_what_judges_cost_when_a_design_is_tried_out_counts_and_is_capped(tmp_path: Path) -> None:
    text = "criterion:\n  - {name: quality, kind: task}\n  - {name: right, kind: task}"
    with ScriptedOpenAI(judged) as server, ScriptedOpenAI([wrapped(text)] * 2) as proposer, seated(judging()):
        task = toy_task(rubric=Rubric([Criterion("quality", judge(server)), Criterion("right", right)]))
        own = TriedRubric(0, "own", (), tuple(tables_of(task.rubric)), gold=0.5)
        settings = ProposerSettings(model=f"scripted@{proposer.address}", retry_wait=0.01)
        lm = open_proposer(settings, ToyEngine())

        def scored_by(tables: Any, file: Path) -> Task:
            write_tables(tables, file)
            return replace(task, rubric=load_rubric(file, task))

        capped = Budget({"judge_calls": 3})
        with pytest.raises(BudgetExhausted):
            Designer(lm, task, capped, tmp_path / "a", 0, ToyEngine()).design(1, [own], (), scored_by)  # type: ignore[arg-type]
        assert capped.spent.judge_calls == len(server.asked) == 3
        free = Budget()
        tables, why = Designer(lm, task, free, tmp_path / "b", 0, ToyEngine()).design(1, [own], (), scored_by)  # type: ignore[arg-type]
        assert tables, why
        assert 8 < free.spent.judge_calls == len(server.asked) < 80


def test_a_proposer_that_fails_ends_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    plan = TuningPlan("p", trials=2, designs=1, seeds=0)
    with ScriptedOpenAI([wrapped(DESIGN)], faults=[Fault(status=401)]) as server:
        settings = ProposerSettings(model=f"scripted@{server.address}", retry_wait=0.01)
        made = config(proposer=settings.model_dump())
        with pytest.raises(ColeverError, match="scripted fault"):
            tuned(tmp_path, plan=plan, config=made, proposer=open_proposer(settings, ToyEngine()))
        tuning = tuned(tmp_path, plan=plan, config=made, proposer=open_proposer(settings, ToyEngine()))
    assert not tuning.tried[1].error


def test_how_a_proposer_is_reached_may_change(tmp_path: Path) -> None:
    plan = replace(PLAN, trials=2, seeds=0)
    for wait in (0.01, 0.02):
        tuned(tmp_path, plan=plan, config=config(proposer={"model": "scripted@http://one/v1", "retry_wait": wait}))
    with pytest.raises(UsageError, match="another --study name"):
        tuned(tmp_path, plan=plan, config=config(proposer={"model": "scripted@http://two/v1"}))


# --- parts -----------------------------------------------------------------------------------------


def test_a_point_and_its_tables_are_the_same() -> None:
    rubric = Rubric([Criterion("a", right, 2.0), Criterion("b", right, 1.0, gate=0.5), Criterion("c", right, 0)])
    root = tables_of(rubric)
    assert rubric_space.point(rubric)["weight.b"] == 0.5
    known = [(rubric_space.point(rubric), 0.3)]
    for seed in range(4):
        params = rubric_space.proposal(rubric, known, "tpe", seed)
        assert params == rubric_space.proposal(rubric, known, "tpe", seed)
        made = rubric_space.at(root, params)
        back = rubric_space.point_of(made, root)
        assert rubric_space.at(root, back) == made
        known.append((back, 0.4))


def test_tables_are_written_and_read_as_any_rubrics_file(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("def polite(example, prediction, steps):\n    return 1.0\n")
    file = tmp_path / "own.toml"
    file.write_text(
        '[[criterion]]\nname = "polite"\nkind = "python"\ncheck = "checks.py:polite"\ngate = 0.5\n'
        '[[criterion]]\nname = "form"\nkind = "regex"\nfield = "answer"\npattern = "\\\\d+: ü #"\nclip = [0.1, 0.9]\n'
    )
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "tuned.yaml"
    write_tables(tables_in(file), other, "a line\nanother")
    assert load_rubric(other).digest() == load_rubric(file).digest()
    assert other.read_text().startswith("# a line\n# another\n")
    with pytest.raises(TaskError, match=r"accepted: a name that ends in \.yaml"):
        write_tables(tables_in(file), tmp_path / "tuned.toml")
    with pytest.raises(TaskError, match="cannot be written"):
        write_tables(tables_in(file), tmp_path / "nowhere" / "tuned.yaml")


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    tables = [
        {"name": n, "kind": "task", "criterion": "right"} for n in ("1e-4", "on", "2024-01-01", "1_0", "ü\u2028x")
    ]
    write_tables([{**t, "weight": 1e-5} for t in tables], tmp_path / "t.yaml")
    assert tables_in(tmp_path / "t.yaml") == [{**t, "weight": 1e-5} for t in tables]


def test_a_check_of_a_file_is_the_same_check_when_it_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("def a(e, p, s):\n    return 1.0\n\n\ndef b(e, p, s):\n    return 0.0\n")
    file = tmp_path / "own.yaml"
    file.write_text("criterion:\n  - {name: a, kind: python, check: 'checks.py:a'}\n")
    before = load_rubric(file)
    assert changes(before, load_rubric(file)) == []
    file.write_text("criterion:\n  - {name: a, kind: python, check: 'checks.py:b'}\n")
    assert changes(before, load_rubric(file)) == ["a: another check"]


def test_means_are_over_the_examples_that_all_know() -> None:
    assert shared_means([[1.0, None, 0.0], [1.0, 0.0, 1.0]]) == [0.5, 1.0]
    assert shared_means([[None], [1.0]]) == [0.0, 0.0]


def test_a_tuning_told_again_with_other_figures_is_tracked_with_the_later_ones(
    found: tuple[Tuning, Path], tmp_path: Path, empty_home: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(empty_home, home)
    for name in ("tuned.yaml", "tuning.json", "tuning.png"):
        (tmp_path / name).write_text("")
    bought = found[0].bought
    assert bought is not None
    for value in (0.3, 0.1, 0.2):
        track(replace(found[0], bought=replace(bought, value=value)), home, tmp_path)
    client = store.open_client(home)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.kind = 'tuning'")
    assert [r.data.metrics["gain/rubric"] for r in runs] == [0.2]


# --- the command -----------------------------------------------------------------------------------

FILE = """
from dataclasses import replace
from colever.tasks.arithmetic import task as whole
task = replace(whole, name="few", train=whole.train[:16], dev=whole.dev[:8], test=whole.test[:8])
"""
SMALL = [
    *("--schedule", "w", "--trials", 2, "--seeds", 1, "--study", "few"),
    *("--set", "weights.updates=1", "--set", "weights.examples_per_update=4", "--set", "weights.group_size=4"),
]


def test_the_command_tells_writes_and_tracks(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, empty_home: Path
) -> None:
    (tmp_path / "few.py").write_text(FILE)
    home, out, task = tmp_path / "home", tmp_path / "tuned.yaml", f"{tmp_path / 'few.py'}:task"
    shutil.copytree(empty_home, home)
    asked = ["rubric", "tune", task, *SMALL, "--home", home, "--out", out]
    status, text, said = run(*asked)
    assert status == 0, said
    assert "Rubrics, each pulled along w, on 8 examples cut from train" in text
    assert "Gold of dev was not read" in text
    assert "tuned.yaml (for: --rubric)" in said
    folder = home / "tunings" / "few"
    assert {"tuned.yaml", "tuning.json", "tuning.png", "rubrics"} <= {f.name for f in folder.iterdir()}
    assert out.read_text().split("criterion:")[1] == (folder / "tuned.yaml").read_text().split("criterion:")[1]
    assert run("rubric", "check", task, "--rubric", out)[0] == 0
    client = store.open_client(home)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    kinds = sorted(r.data.tags.get("kind", "") for r in runs)
    assert kinds == ["rubric", "rubric", "tuning"]
    assert all(r.info.status == "FINISHED" for r in runs)
    assert {"tuning/gold"} == {key for r in runs for key in r.data.metrics if key.startswith("tuning/")}
    status, again, _ = run(*asked, "--json")
    assert status == 0
    assert json.loads(again)["tried"][0]["how"] == "own"
    assert len(client.search_runs([r.info.experiment_id for r in runs][:1])) == 3  # nothing is written twice


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "tuned.toml"], "--out tuned.toml: accepted: a file in a folder that exists, that ends in .yaml"),
        (["--out", "nowhere/t.yaml"], "--out nowhere/t.yaml"),
        (["--out", "folder.yaml"], "--out folder.yaml"),
        (["--schedule", "adaptive"], "adaptive"),
        (["--schedule", "x"], "'x' is no lever"),
        (["--trials", "1"], "--trials 1"),
        (["--rubric", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_wrong_flags_are_told_before_anything_runs(
    flags: Sequence[str],
    message: str,
    run: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    status, _, said = run("rubric", "tune", "arithmetic", *flags, "--home", tmp_path / "home")
    assert status == 2
    assert message in said
    assert not (tmp_path / "home" / "tunings").exists()


def test_a_home_that_is_a_file_is_named(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, said = run("rubric", "tune", "arithmetic", "--home", tmp_path / "file")
    assert status == 2
    assert f"--home {tmp_path / 'file'}: cannot be made" in said


@pytest.mark.parametrize("flag", [["--rubric"], ["--set", "rubric="]])
def test_a_rubric_is_refused_by_its_own_name(
    flag: list[str], run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("criterion:\n  - {name: answer, kind: task, wieght: 1}\n")
    given = [*flag[:-1], f"{flag[-1]}{file}"] if flag[-1].endswith("=") else [*flag, file]
    status, _, said = run("rubric", "tune", "arithmetic", *given, "--home", tmp_path / "home")
    assert status == 2
    assert f"{file}: line 2: criterion 'answer': unknown key 'wieght'" in said
    assert not (tmp_path / "home" / "tunings").exists()
