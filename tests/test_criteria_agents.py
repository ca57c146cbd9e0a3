"""Criteria of agents, of retrieval, and of likeness; tool use is read as DSPy's own agents show it."""

from __future__ import annotations

import json
import threading

import dspy
import pytest
from dspy import lm15
from test_criteria import ANSWER, check, step

from colever.pipelines.rollout import run_rollouts
from colever.tasks.criteria import KINDS
from colever.tasks.rubric import Criterion, Rubric

TOOLS = json.dumps({"search": ["query"], "add": {"properties": {"a": {"type": "number"}}, "required": ["a", "b"]}})


class Script:
    """An engine that answers the calls of a rollout with these fields, one after another."""

    def __init__(self, *answers: dict) -> None:
        self.answers = list(answers)

    def __deepcopy__(self, memo):
        return self

    def complete(self, request):
        fields = self.answers.pop(0)
        text = "\n\n".join(f"[[ ## {k} ## ]]\n{v}" for k, v in fields.items()) + "\n\n[[ ## completed ## ]]"
        message = lm15.Message.assistant([lm15.TextPart(text)])
        return lm15.Response(id="1", model="script", message=message, finish_reason="stop", usage=lm15.Usage())


def act(name: str, **arguments) -> dict:
    return {"next_thought": "so", "next_tool_name": name, "next_tool_args": json.dumps(arguments)}


def search(query: str) -> str:
    """Searches."""
    if query == "broken":
        raise RuntimeError("the index of Atlantis is gone")
    return f"{query} has 2161000 people and lies on the Seine"


def add(a: float, b: float) -> float:
    """Adds."""
    return a + b


def react(*answers: dict, **kinds) -> dict[str, float]:
    """What the criteria give a run of ``dspy.ReAct`` on these answers."""
    rubric = Rubric([Criterion(name, check) for name, check in kinds.items()])
    rollout = run_rollouts(
        dspy.ReAct("question -> answer", [search, add]),
        [("1", dspy.Example(question="how many people has Paris?", answer="x").with_inputs("question"))],
        lm=dspy.LM("script/x", engine=Script(*answers), cache=False),
        score=rubric.score,
        fail=rubric.lowest,
    )[0]
    assert rollout.failure is None, rollout.reason
    return dict(rollout.score.by_criterion)


def test_tool_use_of_react() -> None:
    kinds = {
        "any": KINDS["called"](),
        "search": KINDS["called"](tool="search", least=2),
        "add": KINDS["called"](tool="add"),
        "few": KINDS["called"](least=0, most=1, predictor="react"),
        "valid": KINDS["arguments_valid"](tools=TOOLS),
        "used": KINDS["result_used"](field="answer"),
    }
    end = [act("finish"), {"reasoning": "so", "answer": "about 2161000"}]
    assert react(act("search", query="Paris"), act("search", q="Lyon"), *end, **kinds) == pytest.approx(
        {"any": 1, "search": 1, "add": 0, "few": 1 / 2, "valid": 1 / 2, "used": 1}
    )
    assert react(act("finish"), {"reasoning": "so", "answer": "2161000"}, **kinds) == pytest.approx(
        {"any": 0, "search": 0, "add": 0, "few": 1, "valid": 0, "used": 0}
    )
    end = [act("finish"), {"reasoning": "so", "answer": "Atlantis in Paris"}]
    assert react(act("search", query="broken"), act("add", a="x", b=1), *end, **kinds) == pytest.approx(
        {"any": 1, "search": 1 / 2, "add": 1, "few": 1 / 2, "valid": 1 / 2, "used": 0}
    )


def test_tool_calls_of_a_chat_model_and_of_an_unparsed_step() -> None:
    calls = {"tool_calls": [{"name": "add", "args": {"a": 1, "b": 2}}, {"name": "fly", "args": {}}]}
    steps = [step(tool_calls=calls), step(failed=True)]
    assert check("arguments_valid", "", steps=steps, tools=TOOLS) == 1 / 2
    assert check("arguments_valid", "", steps=steps, tools=TOOLS, predictor="solve") == pytest.approx(1 / 3)
    assert check("arguments_valid", "", steps=[], tools=TOOLS, empty=1.0) == 1
    assert check("called", "", steps=steps, most=1) == 1 / 2
    text = [step(next_tool_name="search", next_tool_args='{"query": "x"}')]
    assert check("arguments_valid", "", steps=text, tools=TOOLS) == 1


def test_tool_use_of_react_v2() -> None:
    calls = dspy.ToolCalls.from_dict_list([{"name": "search", "args": {"query": "Paris"}}])
    results = [{"name": "search", "value": "it lies on the Seine"}]
    calls = calls.model_copy(
        update={"tool_call_results": dspy.adapters.types.tool.ToolCallResults(tool_call_results=results)}
    )
    prediction = dspy.Prediction(answer="on the Seine", history=dspy.History(messages=[{"tool_calls": calls}]))
    example = dspy.Example(question="where is Paris?").with_inputs("question")
    assert KINDS["result_used"](field="answer")(example, prediction, ())
    prediction.answer = "where is Paris"
    assert not KINDS["result_used"](field="answer")(example, prediction, ())


def test_result_used_of_a_field() -> None:
    kind = KINDS["result_used"](field="answer", observations="notes")
    example = dspy.Example(question="who is the boss of Kalo?").with_inputs("question")
    notes = ["boss of Kalo = Miru"]
    assert kind(example, dspy.Prediction(answer="Miru", notes=notes), ())
    assert not kind(example, dspy.Prediction(answer="Kalo", notes=notes), ())
    assert not kind(example, dspy.Prediction(answer="Miru", notes=[]), ())


PASSAGES = [{"id": "doc7", "title": "Seine"}, "The Loire is a river.", {"id": "9", "text": "Rhône"}]


@pytest.mark.parametrize(
    ("answer", "settings", "value"),
    [
        ("It is long [1] and wide [3].", {}, 1),
        ("It is long [1, 4].", {}, 1 / 2),
        ("It is long [doc7][Seine].", {}, 1),
        ("It is long [1-3].", {}, 1),
        ("It is long [0].", {"first": 0}, 1),
        ("It is long [9].", {}, 1),
        ("It is long [1-9999].", {}, 3 / 99),  # at most a hundred are read; 9 is the third
        ("It is long.", {}, 0),
        ("It is long.", {"empty": 0.5}, 0.5),
        ("It is long [1][2].", {"measure": "precision", "gold": "gold"}, 1 / 2),
        ("It is long [1][2].", {"measure": "recall", "gold": "gold"}, 1 / 2),
        ("It is long [1][9].", {"measure": "f1", "gold": "gold"}, 1),
        ("It is long [1][8].", {"measure": "precision", "gold": "gold"}, 1 / 2),
        ("It is long [1][8].", {"measure": "recall", "gold": "lost"}, 1 / 2),
        (None, {"empty": 0.5}, 0),
    ],
)
def test_citation(answer, settings, value) -> None:
    example = dspy.Example(question="q", gold=["doc7", 3], lost=["doc7", "doc8"]).with_inputs("question")
    kind = KINDS["citation"](field="answer", **settings)
    assert kind(example, dspy.Prediction(answer=answer, passages=PASSAGES), ()) == pytest.approx(value)
    given = example.copy(passages=PASSAGES)
    assert kind(given, dspy.Prediction(answer=answer), ()) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "label", "settings", "value"),
    [
        (["a1", "b2"], ["B2", "a1"], {}, 1),
        ("a1, b2", ["b2", "c3"], {}, 1 / 2),
        ("- a1\n- b2\n- c3", "a1, b2", {}, 0.8),
        ('["a1"]', ["a1", "b2"], {"measure": "precision"}, 1),
        ('["a1"]', ["a1", "b2"], {"measure": "recall"}, 1 / 2),
        ('["a1"]', ["a1", "b2"], {"measure": "exact"}, 0),
        ("a1, a1, a1", ["a1"], {}, 1),
        ("A1", ["a1"], {"normalize": False}, 0),
        ("the cat sat", "cat sat down", {"delimiter": " "}, 2 / 3),
        ("", [], {}, 1),
        ([], ["a1"], {}, 0),
        (None, [], {}, 0),
        (True, ["a1"], {}, 0),
    ],
)
def test_set_f1(answer, label, settings, value) -> None:
    assert check("set_f1", answer, label, **ANSWER, **settings) == pytest.approx(value)


def test_similarity_by_hash() -> None:
    label = "The river flows through Paris."
    for method in ("words", "characters"):
        same, near, far = (
            check("similarity", answer, label, **ANSWER, method=method)
            for answer in ("the river flows through Paris", "a river runs through Paris", "cats sleep")
        )
        assert same > 0.9
        assert 0.2 < near < 0.9
        assert far < 0.1
    assert check("similarity", "cats sleep", ["dogs", "cats sleep"], **ANSWER) == pytest.approx(1)
    half = check("similarity", "a river runs through Paris", label, **ANSWER, floor=0.2)
    assert half == pytest.approx((check("similarity", "a river runs through Paris", label, **ANSWER) - 0.2) / 0.8)
    assert [check("similarity", a, label, **ANSWER) for a in ("", " ", "?!", None)] == [0, 0, 0, 0]


def test_similarity_by_a_model_from_threads(tiny_checkpoint) -> None:
    settings = {**ANSWER, "method": "model", "model": str(tiny_checkpoint)}
    assert check("similarity", "cats", "cats", **settings) == pytest.approx(1, abs=1e-6)
    assert check("similarity", "", "cats", **settings) == 0
    answers = [f"answer {i}" for i in range(12)]
    alone = [check("similarity", a, "cats", **settings) for a in answers]
    together: dict[str, float] = {}
    threads = [
        threading.Thread(target=lambda a=a: together.update({a: check("similarity", a + " ", "cats", **settings)}))
        for a in answers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 12
    assert min(alone) < 0.999
    assert check("similarity", "\ud800\x00" * 2000, "cats", **settings) <= 1


def test_a_models_weights_are_in_the_digest(tiny_checkpoint, tmp_path) -> None:
    import shutil

    from conftest import write_checkpoint

    def digest(folder) -> str:
        kind = KINDS["similarity"](field="answer", method="model", model=str(folder))
        return Rubric([Criterion("c", kind)]).digest()

    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    before = digest(tmp_path / "model")
    assert before == digest(tmp_path / "model")
    write_checkpoint(tmp_path / "model", seed=1)
    assert digest(tmp_path / "model") != before
