"""The rollouts that an evaluation keeps: the same examples every time, in words, small, and nothing depends on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from toy import GOOD, ToyEngine, toy_task

from colever.engines.lm import open_engine
from colever.errors import StoreError
from colever.loading import load_config
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.gained import gained
from colever.optimizers.sample import MOST, chosen, sampled
from colever.optimizers.sealed import read_sealed, write_sealed
from colever.optimizers.store import KEPT, EvaluationStore
from colever.optimizers.sweep import study_key
from colever.samples import SampledRollout, SampledStep, cut
from colever.tasks.rubric import Criterion, Rubric
from colever.types import Candidate, Completion, PredictorPrompt, Rollout, Score, Step

IDS = [f"dev-{i}" for i in range(60)]


def test_the_choice_is_of_ids_alone_and_a_larger_one_holds_the_smaller() -> None:
    few = chosen(IDS, 4)
    assert len(few) == 4
    assert few == [name for name in IDS if name in few], "in the split's order"
    assert set(few) <= set(chosen(IDS, 8))
    assert set(chosen(list(reversed(IDS)), 4)) == set(few)
    assert chosen(IDS, 0) == []
    assert chosen(IDS[:3], 8) == IDS[:3]


def test_base_and_child_keep_the_same_examples_and_their_evaluations_are_as_without(tmp_path: Path) -> None:
    task, engine = toy_task(), ToyEngine()
    base, good = task.base_candidate(), Candidate({"solve": PredictorPrompt(GOOD)})
    keeps = Evaluator.of(task, engine, EvaluationStore(tmp_path / "keeps"), 0, kept=5)
    bare = Evaluator.of(task, engine, EvaluationStore(tmp_path / "bare"), 0)
    for candidate in (base, good):
        kept, without = keeps(candidate), bare(candidate)
        assert (kept.scores, kept.golds, kept.example_ids) == (without.scores, without.golds, without.example_ids)
        assert keeps(candidate) == kept, "read back without the sample"
    names = [[r.example_id for r in keeps.rollouts(c)] for c in (base, good)]
    assert names[0] == names[1] == chosen([name for name, _ in task.examples("dev")], 5)
    assert bare.rollouts(base) == ()
    assert keeps.rollouts(base, "test") == (), "not evaluated there"
    for rollout in keeps.rollouts(good):
        place = keeps(good).example_ids.index(rollout.example_id)
        assert rollout.total == keeps(good).scores[place]
        assert rollout.expected["answer"] == str(eval(rollout.inputs["question"]))


def test_of_a_child_those_that_gained_most_without_gold_are_kept_too(tmp_path: Path) -> None:
    """Gold calls every answer wrong that the rubric pays for."""
    task, engine = toy_task(gold=lambda e, p: p.answer != e.answer), ToyEngine()
    base, good = task.base_candidate(), Candidate({"solve": PredictorPrompt(GOOD)})
    evaluator = Evaluator.of(task, engine, EvaluationStore(tmp_path), 0, kept=3)
    looked = replace(evaluator, base=evaluator(base))
    rises = gained(evaluator(base), looked(good))
    assert len(rises) > 3
    sample, more = (looked.store.rollouts(looked.grounds.evaluation_key(good, "dev", 0), kept) for kept in KEPT)
    assert sample == looked.rollouts(good)
    assert len(sample) == 3
    most = set(list(rises)[:3])
    assert {r.example_id for r in more} == most - {r.example_id for r in sample} != set()
    assert all((r.total, r.gold) == (1.0, 0.0) for r in more)
    looked(good, "test")
    for candidate, split in ((base, "dev"), (good, "test")):
        assert looked.store.rollouts(looked.grounds.evaluation_key(candidate, split, 0), "gained") == ()


def test_keys_do_not_depend_on_how_many_are_kept(tmp_path: Path) -> None:
    task = toy_task()
    one, other = (Evaluator.of(task, ToyEngine(), EvaluationStore(tmp_path), 0, kept=n) for n in (0, 8))
    assert one.grounds == other.grounds
    few, none = (load_config(flags={"task": "toy", "sample_rollouts": n}) for n in (3, 0))
    assert study_key(few, one.grounds) == study_key(none, one.grounds)


def test_evaluations_stored_before_there_were_samples_still_load(tmp_path: Path) -> None:
    evaluator = Evaluator.of(toy_task(), ToyEngine(), EvaluationStore(tmp_path), 0, kept=2)
    base = toy_task().base_candidate()
    made = evaluator(base)
    (file,) = evaluator.store.folder.glob("*.json")
    data = read_sealed(file)
    assert len(data.pop("rollouts")) == 2
    write_sealed(file, data)
    assert evaluator(base) == made
    assert evaluator.rollouts(base) == ()


def test_a_corrupt_file_is_named_and_a_round_goes_on_without_its_sample(tmp_path: Path) -> None:
    evaluator = Evaluator.of(toy_task(), ToyEngine(), EvaluationStore(tmp_path), 0, kept=2)
    base = toy_task().base_candidate()
    evaluator(base)
    (file,) = evaluator.store.folder.glob("*.json")
    file.write_text(file.read_text()[:-9])
    with pytest.raises(StoreError, match="Delete the file"):
        evaluator.store.rollouts(file.stem)
    assert evaluator.rollouts(base) == ()


def test_steps_hold_the_prompt_the_answer_and_the_fields_on_both_sides(tmp_path: Path, talker_checkpoint: Path) -> None:
    def add() -> dspy.Module:
        return dspy.Predict("question -> answer: int")

    engine, task = open_engine(talker_checkpoint), toy_task(program=add, rubric=Rubric([Criterion("odd", odd)]))
    evaluator = Evaluator.of(replace(task, gold=None, instructions={}), engine, EvaluationStore(tmp_path), 0, kept=60)
    base = evaluator.task.base_candidate()
    evaluator(base)
    kept = evaluator.rollouts(base)
    assert len(kept) == 60
    for rollout in kept:
        (step,) = rollout.steps
        assert step.prompt.startswith("<|im_start|>system")
        assert f"[[ ## question ## ]]\n{rollout.inputs['question']}" in step.prompt
        assert step.inputs == {"question": rollout.inputs["question"]}
        assert (step.predictor, step.failed, step.completion[-1]) == ("self", False, str(step.outputs["answer"]))
        assert rollout.outputs == step.outputs
        assert rollout.by_criterion == {"odd": rollout.total}
        assert step.prompt_tokens > 50


def odd(example: dspy.Example, prediction: dspy.Prediction, steps: object) -> float:
    return float(prediction.answer % 2)


def rollout_of(text: str, **changes: object) -> Rollout:
    step = Step("solve", 0, Completion(text, (1, 2), (3,), (0.0,), "length", "v"), inputs={"question": text})
    fields = {"steps": (step,) * 20, "score": Score(0.5, {"right": 0.5}, text, 0.25), "outputs": {"answer": [text]}}
    return Rollout("e0", 0, **{**fields, **changes})  # type: ignore[arg-type]


EXAMPLES = [("e0", dspy.Example(question="1 + 1", answer="2").with_inputs("question"))]


def test_long_texts_are_cut_in_the_middle_and_the_whole_stays_small() -> None:
    assert cut("short", 10) == "short"
    assert cut("a" * 50 + "b" * 50, 10) == "aaaaa … (90 characters left out) … bbbbb"
    (small,) = sampled([rollout_of("x" * 5000)], EXAMPLES, 8, lambda tokens: "p" * 9000)
    assert len(small.steps) == 16
    assert "characters left out" in small.steps[0].prompt
    many = [replace(rollout_of("x" * 90_000), example_id=f"e{i}") for i in range(40)]
    kept = sampled(many, [(f"e{i}", EXAMPLES[0][1]) for i in range(40)], 40, lambda tokens: "p" * 90_000)
    assert len(kept) == 40
    assert len(json.dumps([r.to_json() for r in kept])) < 4 * MOST


def test_whatever_a_model_writes_can_be_stored(tmp_path: Path) -> None:
    odd_values = {"answer": "half a pair: \ud800", "nested": [{"\ud800": float("inf")}]}
    kept = sampled([rollout_of("\ud800", outputs=odd_values)], EXAMPLES, 8, lambda tokens: "\ud800")
    assert kept[0].outputs["answer"] == "half a pair: ?"
    write_sealed(tmp_path / "e.json", {"rollouts": [r.to_json() for r in kept]})
    (read,) = read_sealed(tmp_path / "e.json")["rollouts"]
    assert SampledRollout.from_json(read) == kept[0]
    assert isinstance(kept[0].steps[0], SampledStep)


def test_a_rollout_without_a_score_says_why() -> None:
    lost = rollout_of("", score=None, failure="infrastructure", reason="TimeoutError: the tool", steps=())
    (kept,) = sampled([lost], EXAMPLES, 8, lambda tokens: "")
    assert (kept.total, kept.failure, kept.reason) == (None, "infrastructure", "TimeoutError: the tool")
