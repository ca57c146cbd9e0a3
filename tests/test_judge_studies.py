"""What judges said is kept, shared and paid for; studies with a judge go on after an interrupt and ask nobody twice."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judging import ROW, judge, judged_task, name, said, script, settings
from scripted_openai import ScriptedOpenAI
from toy import ToyEngine, ToyWeightLever, ToyWeightSettings, right, toy_task

from colever.config import SweepConfig
from colever.engines.answers import Answers
from colever.engines.bench import Question, bench, seated
from colever.engines.tally import tallied
from colever.errors import StoreError, TaskError, UsageError
from colever.optimizers.evaluate import measure
from colever.optimizers.prompt_lever import PromptLever
from colever.optimizers.sweep import sweep
from colever.tasks.criteria.judge import Judge
from colever.tasks.criteria.panel import Anchor
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Candidate, PredictorPrompt


@pytest.fixture(autouse=True)
def seat_of_its_own() -> Iterator[None]:
    with seated(settings()):
        yield


# --- answers that are kept -----------------------------------------------------------------------------


def test_answers_are_kept_by_content_settings_and_number(tmp_path: Path) -> None:
    file = tmp_path / "home" / "judged.db"
    with ScriptedOpenAI(script) as server:
        for _ in range(2):
            with seated(settings(), file):
                judge(server)(ROW, said("4"))
                judge(server, max_tokens=50)(ROW, said("4"))
                judge(server, temperature=0.5, votes=2)(ROW, said("4"))
                judge(server, question="Is it short?")(ROW, said("4"))
                judge(server)(ROW, said("5"))
            assert len(server.asked) == 6
    kept = Answers(file)
    assert len(kept) == 6
    assert "HOSTED" not in file.read_bytes().decode(errors="ignore")


def test_threads_that_ask_the_same_at_once_ask_once() -> None:
    with ScriptedOpenAI(script) as server:
        asked, ready = judge(server), threading.Barrier(8)

        def one(_: int) -> float:
            ready.wait()
            return asked(ROW, said("4"))

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(one, range(8))) == {1.0}
        assert len(server.asked) == 1


def test_the_number_of_kept_answers_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    kept = Answers(tmp_path / "judged.db", most=5)
    for number in range(20):
        kept.put(str(number), {"text": "x"})
    assert len(kept) == 5
    assert kept.get("14") is None
    assert kept.get("15") == {"text": "x"}
    assert kept.put("15", {"text": "later"}) == {"text": "x"}  # the first answer stands


def test_a_file_that_is_none_is_told_and_makes_no_score(tmp_path: Path) -> None:
    file = tmp_path / "judged.db"
    file.write_text("this is no database, and long enough to be read as one" * 100)
    with ScriptedOpenAI(script) as server, seated(settings(), file):
        with pytest.raises(StoreError, match=r"judged\.db cannot be used"):
            Rubric([Criterion("quality", judge(server))]).score(ROW, said("4"), ())
        assert not server.asked


def _ask(address: str, file: Path, start: int, out: Any) -> None:
    with seated(settings(), file):
        model = (f"scripted@{address}",)
        out.put(
            [float(Judge(question="Is it right?", models=model)(ROW, said(str(n)))) for n in range(start, start + 40)]
        )


def test_two_processes_share_what_is_kept(tmp_path: Path) -> None:
    file, context = tmp_path / "judged.db", multiprocessing.get_context("spawn")
    with ScriptedOpenAI(script) as server:
        out = context.Queue()
        workers = [context.Process(target=_ask, args=(server.address, file, start, out)) for start in (0, 20)]
        for worker in workers:
            worker.start()
        found = [out.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join()
        assert found == [[1.0] * 40] * 2
        assert 60 <= len(server.asked) <= 80  # what both ask at the same moment is asked twice
        with seated(settings(), file), tallied() as tally:
            asked = len(server.asked)
            for n in range(60):
                judge(server)(ROW, said(str(n)))
            assert len(server.asked) == asked
            assert tally.cost.judge_calls == 60
    assert len(Answers(file)) == 60


def test_a_question_may_be_put_by_a_program_too() -> None:
    with ScriptedOpenAI(["", "all of it" * 1000]) as server, tallied() as tally:
        text = bench().ask(Question(name(server), "", "Tell me", keep=0), lambda said: said or None)
    assert (len(text), tally.cost.judge_calls) == (9000, 2)


# --- studies --------------------------------------------------------------------------------------------


def study(server: ScriptedOpenAI, **changes: Any) -> SweepConfig:
    fields: dict[str, Any] = {
        "task": "toy", "model": "toy", "study": "s", "trials": 2, "schedules": ["p", "w"], "elsewhere": [],
        "prompt": {"candidates": 2, "demos": 2, "screen": 8, "examples": 12, "finalists": 1},
        "judge": {"retry_wait": 0.01, "model": name(server)},
    }  # fmt: skip
    return SweepConfig(**{**fields, **changes})


def levers(prompt: Any, weights: Any) -> Any:
    return {"prompt": PromptLever(prompt), "weights": ToyWeightLever(ToyWeightSettings())}


def unnamed(**changes: Any) -> Any:
    anchors = (
        Anchor("good", {"answer": "4"}, {"question": "2 + 2"}),
        Anchor("bad", {"answer": "?"}, {"question": "1"}),
    )
    of = Judge(**{"question": "Is it right?", "anchors": anchors, **changes})
    return toy_task(rubric=Rubric([Criterion("quality", of), Criterion("right", right, 0)]), watched={})


def run_study(server: ScriptedOpenAI, home: Path, task: Any = None, **changes: Any) -> Any:
    return sweep(study(server, **changes), task or unnamed(), ToyEngine(), home, levers=levers)


def test_a_study_that_was_interrupted_goes_on_and_asks_nobody_twice(tmp_path: Path) -> None:
    with ScriptedOpenAI(script) as server:
        whole, unbroken = run_study(server, tmp_path / "whole"), len(server.asked)

    stop = threading.Event()

    def interrupted(messages: list[dict[str, Any]]) -> str:
        stop.set() if len(second.asked) > 100 else None
        return script(messages)

    class Interrupted(ToyEngine):
        def complete(self, request: Any) -> Any:
            if stop.is_set():
                raise KeyboardInterrupt
            return super().complete(request)

    with ScriptedOpenAI(interrupted) as second:
        home = tmp_path / "home"
        with pytest.raises(KeyboardInterrupt):
            sweep(study(second), unnamed(), Interrupted(), home, levers=levers)
        assert 100 < len(second.asked) < unbroken
        stop.clear()
        report = run_study(second, home)
        texts = [json.dumps(body["messages"]) for body in second.asked]
    assert len(texts) == unbroken
    assert len(set(texts)) == len(texts) - 2  # the anchors, at the start and at the end
    assert report.table == whole.table
    assert report.cost.judge_calls == whole.cost.judge_calls > 0
    assert [arm.cost.judge_calls for arm in report.arms] == [arm.cost.judge_calls for arm in whole.arms]


def test_a_finished_study_that_is_run_again_asks_nothing(tmp_path: Path) -> None:
    with ScriptedOpenAI(script) as server:
        first = run_study(server, tmp_path)
        asked = len(server.asked)
        assert run_study(server, tmp_path).table == first.table
        assert len(server.asked) == asked


def test_anchors_are_compared_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    anchored = {"seen": 0}

    def drifting(messages: list[dict[str, Any]]) -> str:
        """Of the second anchor it says bad the first time, and good ever after."""
        if "output answer\n?\n" in messages[-1]["content"]:
            anchored["seen"] += 1
            return f"VERDICT: {'bad' if anchored['seen'] == 1 else 'good'}"
        return script(messages)

    with ScriptedOpenAI(script) as server:
        steady = run_study(server, tmp_path / "steady")
    with ScriptedOpenAI(drifting) as server:
        report = run_study(server, tmp_path / "moved")
    line = "Judge 'quality': 0.00 from its 2 anchors at the start, {} at the end; its verdicts on them moved by {}"
    assert any(note == line.format("0.00", "0.00") + " in the mean." for note in steady.notes)
    (told,) = [note for note in report.notes if note.startswith("Judge")]
    assert told.startswith(line.format("0.50", "0.50"))
    assert "beyond its tolerance of 0.25: scores of this study may not be comparable" in told


def test_a_judge_that_disagrees_with_its_anchors_stops_the_study_before_anything_is_spent(tmp_path: Path) -> None:
    with ScriptedOpenAI(lambda messages: "VERDICT: good") as server:
        engine = ToyEngine()
        said = (
            r"criterion 'quality': the judge is 0\.50 from its 2 anchors .* anchor 2, 'bad', it says 1\.00 in the place"
        )
        with pytest.raises(TaskError, match=said):
            sweep(study(server), unnamed(), engine, tmp_path, levers=levers)
        assert (len(server.asked), engine.calls) == (2, 0)


def test_a_judge_without_a_model_or_one_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    engine = ToyEngine()
    with ScriptedOpenAI(script) as server:
        with pytest.raises(TaskError, match=r"'quality' .* without a model; accepted: --set judge\.model"):
            sweep(study(server, judge={}), unnamed(), engine, tmp_path, levers=levers)
        with pytest.raises(UsageError, match=r"judge 'quality': model other@http.* 'other' is not served"):
            sweep(study(server), unnamed(models=(name(server, "other"),)), engine, tmp_path, levers=levers)
    with pytest.raises(UsageError, match="cannot be reached"):
        sweep(study(server), unnamed(), engine, tmp_path, levers=levers)
    assert engine.calls == 0


def test_a_cap_on_judges_ends_the_search_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with ScriptedOpenAI(script) as server:
        short = run_study(server, tmp_path, budget={"judge_calls": 70})
        assert any("judge_calls=70 is reached" in note for note in short.notes)
        full = run_study(server, tmp_path)
        assert len(full.arms) == 2 > len(short.arms)


def test_another_judge_is_another_task(tmp_path: Path) -> None:
    with ScriptedOpenAI(script, models=["one", "two"]) as server:
        tasks = [unnamed(models=(name(server, model),)) for model in ("one", "two")]
        assert tasks[0].digest() != tasks[1].digest()
        assert tasks[0].digest() == unnamed(models=(name(server, "one"),)).digest()
        assert tasks[0].digest() != unnamed(models=(name(server, "one"),), question="Is it so?").digest()


def test_reasons_reach_what_a_prompt_optimizer_reads() -> None:
    from colever.optimizers.rehearsed import Rehearsed

    with ScriptedOpenAI(script) as server:
        task = replace(judged_task(server), gold=None)
        _, rollouts = measure(Candidate({"solve": PredictorPrompt("x")}), task, ToyEngine(), "dev", seed=0, limit=20)
        low = next(r for r in rollouts if r.score is not None and r.score.total < 1)
        kept = Rehearsed.from_json(json.loads(json.dumps(Rehearsed.of(low).__dict__)))
    assert "quality 0.00 (bad: It says 'no idea'.)" in task.rubric.feedback(kept.score, "solve")
