"""The model that writes prompts, asked over real HTTP on loopback; what it answers is scripted."""

from __future__ import annotations

import contextlib
import copy
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMError
from scripted_openai import BROKEN, EMPTY, HANG, MALFORMED, NO_CHOICES, TOO_MANY, Fault, ScriptedOpenAI
from toy import ToyEngine, right, toy_task

from colever.config import ProposerSettings
from colever.engines.lm import engine_lm
from colever.errors import BudgetExhausted, InfrastructureError, StoreError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.proposer import counted, open_proposer

WRITE = dspy.Signature("task -> instruction", "Write an instruction.")


def script(messages: list[dict[str, Any]]) -> str:
    return "[[ ## instruction ## ]]\nThink twice.\n\n[[ ## completed ## ]]"


def settings(server: ScriptedOpenAI, **changes: Any) -> ProposerSettings:
    return ProposerSettings(**{"model": f"scripted@{server.address}", "retry_wait": 0.01, "timeout": 30.0, **changes})


def opened(server: ScriptedOpenAI, journal: Path, budget: Budget | None = None, **changes: Any) -> dspy.LM:
    lm = open_proposer(settings(server, **changes), ToyEngine())
    assert lm is not None
    return counted(lm, budget if budget is not None else Budget(), journal)


def patience(fault: Fault) -> float:
    return 0.5 if fault is HANG else 30.0


# --- which model -----------------------------------------------------------------------------------


def test_none_is_none_and_policy_is_the_policys_own_engine() -> None:
    engine = ToyEngine()
    assert open_proposer(ProposerSettings(), engine) is None
    lm = open_proposer(ProposerSettings(model="policy", temperature=0.3), engine)
    assert lm is not None
    assert lm.engine is engine
    assert lm.kwargs["temperature"] == 0.3


def test_an_address_alone_is_asked_what_it_serves() -> None:
    with ScriptedOpenAI(script, models=["only/one"]) as server:
        lm = open_proposer(settings(server, model=server.address), ToyEngine())
        assert lm is not None
        lm("hello")
        assert server.asked[0]["model"] == "only/one"
    with ScriptedOpenAI(script, models=["one", "two"]) as server, pytest.raises(UsageError, match="one, two"):
        open_proposer(settings(server, model=server.address), ToyEngine())


def test_a_name_that_is_not_served_and_an_address_that_does_not_answer_are_told_at_once() -> None:
    with ScriptedOpenAI(script, models=["one"]) as server:
        address = server.address
        with pytest.raises(UsageError, match="'other' is not served there; accepted: one"):
            open_proposer(settings(server, model=f"other@{address}"), ToyEngine())
        assert not server.asked
    with pytest.raises(UsageError, match="cannot be reached"):
        open_proposer(ProposerSettings(model=f"one@{address}"), ToyEngine())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt-5-mini", "accepted: PROVIDER/MODEL"),
        ("m@http://user:secret@127.0.0.1/v1", "no user, password"),
        ("m@http://127.0.0.1/v1?key=secret", "no user, password or question"),
        ("openai/", "accepted"),
    ],
)
def test_a_name_that_is_none_is_refused_without_its_secret(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_proposer(ProposerSettings(model=name), ToyEngine())
    assert "secret" not in str(caught.value)


def test_a_key_that_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"openai/gpt-5-mini: no API key found.*Set OPENAI_API_KEY"):
        open_proposer(ProposerSettings(model="openai/gpt-5-mini"), ToyEngine())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    assert open_proposer(ProposerSettings(model="openai/gpt-5-mini"), ToyEngine()) is not None


# --- what a call counts for ------------------------------------------------------------------------


def test_calls_tokens_and_dollars_are_booked(tmp_path: Path) -> None:
    budget = Budget()
    with ScriptedOpenAI(script) as server:
        lm = opened(server, tmp_path / "journal", budget, input_price=2.0, output_price=10.0)
        lm("one two three")
        lm("one two three")
    assert len(server.asked) == 2  # nothing comes from a cache
    spent = budget.spent
    assert (spent.proposer_calls, spent.proposer_tokens) == (2, 2 * (3 + 12))
    assert spent.dollars == pytest.approx(2 * (3 * 2 + 12 * 10) / 1e6)
    assert (spent.prompt_tokens, spent.completion_tokens) == (0, 0)  # those are the policy's


def test_a_price_that_nobody_knows_counts_as_nothing_and_is_said_once(tmp_path: Path, caplog: Any) -> None:
    budget = Budget()
    with ScriptedOpenAI(script) as server:
        lm = opened(server, tmp_path / "journal", budget)
        lm("one")
        lm("two")
    assert budget.spent.dollars == 0
    assert sum("no price is known" in r.message for r in caplog.records) == 1


def test_the_policy_as_proposer_counts_on_both_sides(tmp_path: Path) -> None:
    budget, engine = Budget(), ToyEngine()
    lm = open_proposer(ProposerSettings(model="policy"), engine)
    assert lm is not None
    counted(lm, budget, tmp_path / "journal")("What is 1 + 2?")
    spent = budget.spent
    assert (spent.proposer_calls, spent.proposer_tokens) == (1, 12)
    assert (spent.prompt_tokens, spent.completion_tokens, spent.flops) == (10, 2, 1e6)


def test_a_cap_ends_it_before_the_call_that_would_pass_it(tmp_path: Path) -> None:
    with ScriptedOpenAI(script) as server:
        lm = opened(server, tmp_path / "journal", Budget({"proposer_calls": 2}))
        lm("one")
        lm("two")
        for _ in range(2):
            with pytest.raises(LMError):
                lm("three")
        assert isinstance(lm.engine.failed, BudgetExhausted)
        assert len(server.asked) == 2


def test_threads_together_stay_within_the_cap(tmp_path: Path) -> None:
    with ScriptedOpenAI(script) as server:
        lm = opened(server, tmp_path / "journal", budget := Budget({"proposer_calls": 5}))

        def ask(number: int) -> None:
            with dspy.context(lm=lm.copy(rollout_id=number)), contextlib.suppress(LMError):
                dspy.Predict(WRITE)(task=str(number))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == budget.spent.proposer_calls <= 5
        assert isinstance(lm.engine.failed, BudgetExhausted)


# --- as DSPy's optimizers use it -------------------------------------------------------------------


def test_several_answers_copies_and_temperatures(tmp_path: Path) -> None:
    budget = Budget()
    with ScriptedOpenAI(script) as server:
        lm = opened(server, tmp_path / "journal", budget)
        with dspy.context(lm=copy.deepcopy(lm)):
            made = dspy.Predict(WRITE, n=9, temperature=1.4)(task="add")
        assert len(made.completions.instruction) == 9
        assert budget.spent.proposer_calls == 9
        assert lm.copy(temperature=0.2).engine is lm.engine
        assert {body["temperature"] for body in server.asked} == {1.4}


def test_a_pull_that_is_run_again_asks_nothing_twice_and_costs_the_same(tmp_path: Path) -> None:
    journal, replies = tmp_path / "pull" / "journal", [f"reply {i}" for i in range(9)]
    with ScriptedOpenAI(replies) as server:
        lm = opened(server, journal, input_price=1.0)
        before = [lm("same")[0], lm("same")[0], lm("other")[0]]
    with journal.open("ab") as file:
        file.write(b'{"key": "half a li')  # the kill came while this one was written
    with ScriptedOpenAI(replies[3:]) as server:
        lm = open_proposer(settings(server, input_price=1.0), ToyEngine())
        assert lm is not None
        lm = counted(lm, budget := Budget(), journal)
        again = [lm("same")[0], lm("same")[0], lm("other")[0]]
        assert server.asked == []
        third = lm("same")[0]
        assert len(server.asked) == 1
    assert again == before == ["reply 0", "reply 1", "reply 2"]
    assert third == "reply 3"
    assert (budget.spent.proposer_calls, budget.spent.dollars) == (4, pytest.approx(4e-6))
    assert len(journal.read_text().splitlines()) == 4


def test_dspys_copro_goes_on_from_the_journal(tmp_path: Path) -> None:
    wrote = "[[ ## proposed_instruction ## ]]\nWork in steps and then answer.\n\n[[ ## completed ## ]]"
    prefix = "\n\n[[ ## proposed_prefix_for_output_field ## ]]\nAnswer:\n\n[[ ##"
    task, told = toy_task(), []
    for _ in range(2):
        with ScriptedOpenAI(lambda messages: wrote.replace("\n\n[[ ##", prefix)) as server:
            lm = opened(server, tmp_path / "journal", budget := Budget(), input_price=1.0)
            with dspy.context(lm=engine_lm(ToyEngine())):
                optimizer = dspy.COPRO(prompt_model=lm, metric=right, breadth=4, depth=2, init_temperature=1.2)
                evaluation = {"num_threads": 1, "display_progress": False}
                made = optimizer.compile(task.program(), trainset=task.train[:20], eval_kwargs=evaluation)
        told.append((made.solve.signature.instructions, budget.spent, len(server.asked)))
    (words, spent, asked), (again, charged, none) = told
    assert words == again == "Work in steps and then answer."
    assert spent == charged
    assert (asked, none) == (spent.proposer_calls, 0)


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"key": 1}\n')
    with ScriptedOpenAI(script) as server, pytest.raises(StoreError, match="cannot be read"):
        opened(server, tmp_path / "journal")


# --- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [TOO_MANY, BROKEN, HANG, MALFORMED, NO_CHOICES], ids=lambda f: f"{f.kind}{f.status}")
def test_a_fault_that_passes_is_overcome(fault: Fault, tmp_path: Path) -> None:
    with ScriptedOpenAI(script, faults=[fault, fault]) as server:
        lm = opened(server, tmp_path / "journal", budget := Budget(), timeout=patience(fault))
        assert "Think twice." in lm("hello")[0]
        assert len(server.asked) == 3 or fault is HANG  # where others keep the machine busy, more may take too long
    assert budget.spent.proposer_calls == 1


@pytest.mark.parametrize("fault", [TOO_MANY, BROKEN, HANG, MALFORMED, NO_CHOICES], ids=lambda f: f"{f.kind}{f.status}")
def test_a_fault_that_stays_ends_the_pull_for_good(fault: Fault, tmp_path: Path) -> None:
    with ScriptedOpenAI(script, always=fault) as server:
        lm = opened(server, tmp_path / "journal", budget := Budget(), retries=1, timeout=patience(fault))
        with pytest.raises(LMError):
            lm("hello")
        asked = len(server.asked)
        with pytest.raises(LMError):
            lm("something else")
        assert len(server.asked) == asked == 2
        assert isinstance(lm.engine.failed, InfrastructureError)
        assert f"scripted at {server.address}" in str(lm.engine.failed)
    assert budget.spent.proposer_calls == 0


def test_a_server_that_says_when_is_asked_then(tmp_path: Path) -> None:
    with ScriptedOpenAI(script, faults=[Fault(status=429, retry_after=0.2)]) as server:
        lm = opened(server, tmp_path / "journal", retry_wait=60.0)
        lm("hello")
    with ScriptedOpenAI(script, faults=[Fault(status=429, retry_after=3600)]) as server:
        lm = opened(server, tmp_path / "other")
        with pytest.raises(LMError):
            lm("hello")
        assert "3,600 s" in str(lm.engine.failed)


def test_a_refused_key_is_the_callers_to_mend_and_never_repeated(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "sk-very-secret-key")
    fault = Fault(status=401, message="wrong key sk-very-secret-key")
    with ScriptedOpenAI(script, always=fault) as server:
        lm = opened(server, tmp_path / "journal")
        with pytest.raises(LMError) as caught:
            lm("hello")
        assert server.keys == ["Bearer sk-very-secret-key"]
    assert isinstance(lm.engine.failed, UsageError)
    assert "[HOSTED_VLLM_API_KEY]" in str(lm.engine.failed)
    assert "secret" not in str(caught.value)


def test_an_empty_answer_is_counted_and_no_error(tmp_path: Path) -> None:
    with ScriptedOpenAI(script, faults=[EMPTY]) as server:
        lm = opened(server, tmp_path / "journal")
        assert not (lm("hello")[0] or "").strip()
        lm("hello")
    assert (lm.engine.empty, lm.engine.failed) == (1, None)


def test_any_lm_of_the_callers_own_is_counted(tmp_path: Path) -> None:
    from dspy.utils.dummies import DummyLM

    lm = counted(DummyLM([{"instruction": "a"}, {"instruction": "b"}]), budget := Budget(), tmp_path / "journal")
    with dspy.context(lm=lm):
        assert dspy.Predict(WRITE)(task="x").instruction == "a"
    assert budget.spent.proposer_calls == 1
