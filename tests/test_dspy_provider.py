"""DSPy's own trainers on a Colever engine: they run unchanged, and what they were told to teach is learned."""

from __future__ import annotations

import dspy
import pytest
import torch
from dspy.teleprompt.grpo import GRPO
from dspy.utils.dummies import DummyLM
from dspy_parts import ADAPTER, Pick, Picker, chats, high_share, is_high, words

import colever
from colever.engines.generation import ModelShape
from colever.engines.lm import open_engine
from colever.errors import UsageError
from colever.optimizers.finetune import chat_row, completion_ids
from colever.optimizers.reinforce import end_job
from colever.types import Weights

TAUGHT = {"learning_rate": 4e-3, "num_train_epochs": 6, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return open_engine(tiny_checkpoint)


@pytest.fixture(autouse=True)
def _seams(engine, finetune_home):
    end_job(engine)  # of a test that failed
    engine.load(Weights())
    with dspy.context(adapter=ADAPTER):
        yield


def base_lm(engine, **options) -> dspy.LM:
    return colever.engine_lm(engine, weights=Weights(), max_tokens=24, **options)


def greedy(lm: dspy.LM) -> str:
    return lm(messages=chats("0", 1)[0][:-1])[0]


def sevens(lm: dspy.LM) -> tuple[Picker, Picker]:
    """A student on ``lm``, and a teacher that always picks 7."""
    student, teacher = Picker(), Picker()
    student.set_lm(lm)
    teacher.set_lm(DummyLM([{"answer": "7"}] * 100))
    return student, teacher


def test_bootstrap_finetune_teaches_what_the_teacher_does(engine, finetune_home, tmp_path):
    lm = base_lm(engine)
    before = greedy(lm)
    student, teacher = sevens(lm)
    program = dspy.BootstrapFinetune(metric=is_high, train_kwargs=TAUGHT, num_threads=1).compile(
        student, trainset=words(64), teacher=teacher
    )
    assert "7" not in before
    assert program(word="w5").answer == "7"
    assert greedy(lm) == before  # the old LM still has its weights, on the same engine
    new = program.pick.lm
    assert new.model != lm.model
    assert next(finetune_home.rglob("weights/model.safetensors"))
    program.save(tmp_path / "program.json")
    loaded = Picker()
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.pick.lm.engine is not engine
    assert loaded(word="w5").answer == "7"


def test_supervised_training_is_on_the_engines_meter(engine):
    rows = [{"messages": chat} for chat in chats("7", 3)]
    lengths = [chat_row(engine, i, row["messages"]) for i, row in enumerate(rows)]
    longest, answers = max(len(r["input_ids"]) for r in lengths), [i != -100 for r in lengths for i in r["labels"]]
    shape, before = ModelShape.of(engine.model), engine.meter
    how = {"num_train_epochs": 2, "per_device_train_batch_size": 3}
    assert isinstance(base_lm(engine).finetune(rows, "chat", how).result(), dspy.LM)
    spent = engine.meter - before
    assert spent.trained_tokens == 2 * sum(answers)
    assert spent.flops == 2 * 3 * shape.flops(3 * longest, 3 * longest * (longest + 1) // 2, 3 * longest)


def test_supervised_loss_is_on_the_answer_alone_and_falls(engine):
    chat = chats("7", 1)[0]
    row = chat_row(engine, 0, chat)
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tuple(learned) == completion_ids(engine, chat[-1]["content"])
    assert tuple(row["input_ids"][: -len(learned)]) == engine.render(chat[:-1])
    lm = base_lm(engine)
    job = lm.finetune([{"messages": c} for c in chats("7", 32)], "chat", TAUGHT | {"peft": "lora"})
    new = job.result()
    assert isinstance(new, dspy.LM), new
    assert job.losses[-1] < 0.5 * job.losses[0]
    assert engine.named.find(new.model).kind == "lora"
    assert engine.version == "base"
    assert "forward" not in engine.model.__dict__


@pytest.mark.parametrize(("data", "form", "kwargs", "reason"), [
    ([], "chat", {}, "train_data is empty"),
    ([{"messages": [{"role": "user", "content": "hi"}]}], "chat", {}, "row 0: the last message"),
    ([], "completion", {}, "train_data_format"),
    ([], "chat", {"epochs": 3}, "epochs: unknown key; accepted:"),
])  # fmt: skip
def test_what_cannot_be_trained_on_is_named(engine, data, form, kwargs, reason):
    result = base_lm(engine).finetune(data, form, kwargs).result()
    assert isinstance(result, UsageError)
    assert reason in str(result)


def group(digits: str) -> list[dict]:
    """One completion per digit, rewarded if it is high."""
    rows = []
    for digit in digits:
        *messages, answer = chats(digit, 1)[0]
        rows.append({"messages": messages, "completion": answer, "reward": float(digit > "5")})
    return rows


def logprob(engine, digit: str) -> float:
    """Of the whole completion that picks ``digit``, under the weights in the model."""
    chat = chats(digit, 1)[0]
    prompt, answer = engine.render(chat[:-1]), completion_ids(engine, chat[-1]["content"])
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(answer)), list(answer)].sum())


def rewarded_margin(engine) -> float:
    """Of ``group("2728")``: what an update climbs, to first order; single completions may fall while it rises."""
    return logprob(engine, "7") + logprob(engine, "8") - 2 * logprob(engine, "2")


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_updates_raise_what_was_rewarded(engine, digit_weights, peft):
    lm = colever.engine_lm(engine, weights=digit_weights, temperature=1.0, max_tokens=24)
    job = lm.reinforce({"learning_rate": 2e-4, "peft": peft})
    low, margin = logprob(engine, "2"), rewarded_margin(engine)
    ids = set()
    for _ in range(3):
        ids.update(job.get_status()["pending_batch_ids"])
        job.step([{"batch_id": 0, "group": group("2728")}], "grpo_chat")
    assert len(ids) == 3  # never one twice
    assert rewarded_margin(engine) > margin + 0.3
    assert logprob(engine, "2") < low
    trained = logprob(engine, "7")
    if peft == "none":
        job.save_checkpoint("third")
        assert engine.named.find(job.get_status()["checkpoints"]["third"]).kind == "full"
    job.terminate()
    assert lm.model == f"colever/{engine.name}@{engine.version}"
    engine.load(Weights())
    engine.load(engine.named.find(lm.model))
    assert logprob(engine, "7") == pytest.approx(trained, abs=1e-4)
    job.terminate()  # again: nothing


def test_a_job_that_was_left_behind_is_ended(engine, digit_weights):
    lm = colever.engine_lm(engine, weights=digit_weights, temperature=1.0, max_tokens=24)
    name, before = lm.model, greedy(lm.copy(temperature=0.0))
    job = lm.reinforce({"learning_rate": 1e-2})
    job.step([{"batch_id": 0, "group": group("27")}], "grpo_chat")
    with pytest.raises(dspy.utils.exceptions.LMError, match="being trained in place"):
        greedy(base_lm(engine))
    lm.kill()
    assert job.get_status()["status"] == "cancelled"
    assert lm.model == name
    assert greedy(lm.copy(temperature=0.0)) == before
    with pytest.raises(UsageError, match="the job is cancelled"):
        job.step([], "grpo_chat")


def test_greedy_rollouts_are_refused(engine):
    with pytest.raises(UsageError, match="temperature of the LM is 0"):
        base_lm(engine).reinforce({})


def test_dspys_grpo_moves_the_weights_towards_the_reward(tiny_checkpoint, digit_weights):
    """With the settings under which DSPy 3.4.1 works: ``exclude_demos`` (its default raises), an adapter (XML else),
    one thread (answers in a fixed order), and as many groups per update as it makes."""
    engine = open_engine(tiny_checkpoint)  # of its own: the seeds of its calls count from 0
    lm = colever.engine_lm(engine, weights=digit_weights, temperature=1.0, max_tokens=24)
    old = lm.copy()
    before = high_share(old)
    student = Picker()
    student.set_lm(lm)
    optimizer = GRPO(
        metric=is_high, exclude_demos=True, adapter=ADAPTER, num_threads=1, num_train_steps=5,
        num_dspy_examples_per_grpo_step=4, num_rollouts_per_grpo_step=8,
        train_kwargs={"groups_per_update": 4, "learning_rate": 1e-3},
    )  # fmt: skip
    program = optimizer.compile(student, trainset=words(8))
    assert program.pick.lm is lm
    assert lm.model != old.model
    assert high_share(lm) > before + 0.2
    assert high_share(old) < before + 0.2


def test_copies_share_the_engine_and_its_provider(engine):
    program = Picker()
    program.set_lm(base_lm(engine))
    copy = program.deepcopy()
    assert copy.pick.lm is not program.pick.lm
    assert copy.pick.lm.engine is engine
    assert copy.pick.lm.provider is program.pick.lm.provider
    assert Pick.instructions == copy.pick.signature.instructions
