"""A rubric where other libraries score: TRL's trainers, DSPy's evaluation and optimizers, MLflow's evaluation."""

from __future__ import annotations

import pickle

import dspy
import pytest
from dspy.utils import DummyLM
from test_criteria import step

from colever.errors import InfrastructureError, TaskError
from colever.tasks.criteria import KINDS
from colever.tasks.dspy_metric import rubric_metric
from colever.tasks.load import load_task
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.trl_rewards import TrlReward, rubric_reward
from colever.tracking.scorer import rubric_scorer

RUBRIC = Rubric([
    Criterion("right", KINDS["exact"](field="answer"), 3, "another answer"),
    Criterion("short", KINDS["length"](field="answer", high=2), 1, "two words at most", "predict"),
])  # fmt: skip
EXAMPLES = [dspy.Example(question=f"q{i}", answer=f"a{i}").with_inputs("question") for i in range(4)]


def broken(*_: object) -> float:
    raise InfrastructureError("the judge is down")


BROKEN = Rubric([Criterion("judge", broken)])


# --- TRL -------------------------------------------------------------------------------------------


def rewarded(reward: TrlReward, text: str, **fields) -> float:
    return reward(
        dspy.Example(question="q", **fields).with_inputs("question"), dspy.Prediction(answer=text), [step(text)]
    )


def test_trls_own_reward_functions_are_criteria() -> None:
    from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

    assert rewarded(TrlReward(think_format_reward), "<think>so</think>4") == 1
    assert rewarded(TrlReward(think_format_reward, field="answer"), "4") == 0
    accuracy = TrlReward(accuracy_reward)
    assert rewarded(accuracy, r"\boxed{\frac{2}{4}}", solution=r"\frac{1}{2}") == 1
    assert rewarded(accuracy, r"\boxed{\frac{1}{4}}", solution=r"\frac{1}{2}") == 0
    long = TrlReward(get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4), low=-1.0, high=0.0)
    assert [rewarded(long, "w " * n) for n in (4, 6, 9)] == [1, 0.5, 0]
    assert Rubric([Criterion("a", accuracy)]).digest() != Rubric([Criterion("a", long)]).digest()


async def slowly(completions: list, **columns: list) -> list[float]:
    return [5.0] * len(completions)


def test_a_reward_of_ones_own_range() -> None:
    seen: dict = {}

    def taps(prompts, completions, level, **columns) -> list[float]:
        seen.update(prompts=prompts, completions=completions, columns=columns)
        return [level[0]]

    reward = TrlReward(taps, low=-2, high=2, chat=False)
    assert [rewarded(reward, "x", level=level) for level in (-2, 0, 1, 2)] == [0, 0.5, 0.75, 1]
    assert (seen["prompts"], seen["completions"]) == (["q"], ["x"])
    assert seen["columns"] == {"completion_ids": [[0]], "question": ["q"]}
    with pytest.raises(TaskError, match=r"taps returned 3\.0; accepted: low to high, -2.0 to 2.0"):
        rewarded(reward, "x", level=3)
    with pytest.raises(TaskError, match=r"taps returned \[None\]; accepted: one number"):
        rewarded(reward, "x", level=None)
    with pytest.raises(TaskError, match=r"trl_reward: high is 0\.0; accepted: a number above low"):
        TrlReward(taps, high=0)
    assert rewarded(TrlReward(slowly, high=10.0), "x") == 0.5


def test_a_rubric_as_a_reward_function() -> None:
    logged: dict = {}
    reward = rubric_reward(RUBRIC)
    columns = {"answer": ["a", "a"], "trainer_state": object(), "log_metric": logged.__setitem__}
    chats = [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b c d"}]]
    assert reward(prompts=["q", "q"], completions=chats, **columns) == [1, 1 / 8]
    assert logged == {"rubric/right": 0.5, "rubric/short": 0.75}
    assert reward(prompts=["q"], completions=["a"], answer=["a"]) == [1]
    assert rubric_reward(BROKEN)(prompts=["q"], completions=["a"]) == [None]
    parsed = rubric_reward(RUBRIC, dspy.Signature("question -> answer"))
    texts = ["[[ ## answer ## ]]\na\n\n[[ ## completed ## ]]", "a"]
    assert parsed(prompts=["q"] * 2, completions=texts, answer=["a", "a"]) == [1, 0]


def test_a_tasks_reward_wants_its_columns() -> None:
    with pytest.raises(TaskError, match="no column 'ticket'; there are: team"):
        rubric_reward(load_task("routing"), "team")(prompts=["q"], completions=["a"], team=["K3"])


def test_trls_trainer_trains_on_a_rubric(tiny_checkpoint, tmp_path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": e.question}], "answer": "a"} for e in EXAMPLES])
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, report_to=[],
        max_completion_length=8, use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    short = Rubric([Criterion("short", KINDS["length"](field="answer", high=1, unit="characters", fade=40))])
    trainer = GRPOTrainer(str(tiny_checkpoint), rubric_reward(short), args=arguments, train_dataset=rows)
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0 < log["rewards/rubric_score/mean"] <= 1
    assert log["rubric/short"] == pytest.approx(log["rewards/rubric_score/mean"], abs=1e-6)


# --- DSPy ------------------------------------------------------------------------------------------


def answers(*texts: str) -> DummyLM:
    return DummyLM([{"answer": text} for text in texts])


def test_dspys_evaluation_gives_the_rubrics_mean() -> None:
    with dspy.context(lm=answers("a0", "wrong", "far too long", "a3")):
        evaluate = dspy.Evaluate(devset=EXAMPLES, metric=rubric_metric(RUBRIC), num_threads=1)
        assert evaluate(dspy.Predict("question -> answer")).score == pytest.approx(
            100 * (1 + 1 / 4 + 1 / 8 + 1) / 4, abs=0.01
        )


@pytest.mark.parametrize(("accept", "kept"), [(1.0, 1), (0.2, 2)])
def test_demos_are_bootstrapped_of_what_is_good_enough(accept: float, kept: int) -> None:
    optimizer = dspy.BootstrapFewShot(metric=rubric_metric(RUBRIC, accept), max_labeled_demos=0, max_rounds=1)
    with dspy.context(lm=answers("a0", "wrong", "far too long")):
        program = optimizer.compile(dspy.Predict("question -> answer"), trainset=EXAMPLES[:3])
    assert len(program.demos) == kept


def test_a_value_is_a_number_with_a_truth_of_its_own() -> None:
    metric = rubric_metric(RUBRIC)
    value = metric(EXAMPLES[0], dspy.Prediction(answer="wrong"))
    assert value == 0.25
    assert not value
    assert sum([value, value]) == 0.5
    assert not pickle.loads(pickle.dumps(value))


def test_gepa_is_told_of_each_predictor() -> None:
    program = dspy.ChainOfThought("question -> answer")
    metric = rubric_metric(RUBRIC, program=program)
    said = metric(EXAMPLES[0], dspy.Prediction(answer="one two three"), [], "predict", [])
    assert said.score == pytest.approx(1 / 8)
    assert said.feedback == (
        "score 0.12. this step: short 0.50 (two words at most). the whole run: right 0.00 (another answer)"
    )


def test_dspys_gepa_runs_on_it() -> None:
    reflection = DummyLM([{"improved_instruction": "Answer well."}] * 20)
    student = dspy.Predict("question -> answer")
    optimizer = dspy.GEPA(
        metric=rubric_metric(RUBRIC, program=student), max_metric_calls=12, reflection_lm=reflection, num_threads=1
    )
    with dspy.context(lm=answers(*["wrong", "a1"] * 40)):
        program = optimizer.compile(student, trainset=EXAMPLES[:2], valset=EXAMPLES[2:])
    assert isinstance(program, dspy.Predict)
    assert reflection.history


def test_criteria_see_the_calls_of_a_trace() -> None:
    program = dspy.ChainOfThought("question -> answer")
    rubric = Rubric([Criterion("why", KINDS["regex"](field="predict.reasoning", pattern="because"))])
    metric, trace = rubric_metric(rubric, program=program), []
    with dspy.context(lm=DummyLM([{"reasoning": "because", "answer": "a0"}]), trace=trace):
        prediction = program(**EXAMPLES[0].inputs())
    assert (metric(EXAMPLES[0], prediction, trace), metric(EXAMPLES[0], prediction)) == (1, 0)


# --- MLflow ----------------------------------------------------------------------------------------


def test_a_scorer_gives_the_total_and_each_criterion() -> None:
    scorer = rubric_scorer(RUBRIC)
    given = scorer(inputs={"question": "q"}, outputs={"answer": "b c d"}, expectations={"answer": "a"})
    assert {f.name: f.value for f in given} == {"rubric": 1 / 8, "rubric/right": 0, "rubric/short": 0.5}
    assert given[0].rationale == "right 0.00 (another answer); short 0.50 (two words at most)"
    assert scorer(inputs="q", outputs="a", expectations={"answer": "a"})[0].value == 1
    assert scorer(inputs="q", outputs=None, expectations=None)[0].value == 0
    (failed,) = rubric_scorer(BROKEN)(inputs="q", outputs="a", expectations=None)
    assert failed.value is None
    assert "the judge is down" in failed.error.error_message
