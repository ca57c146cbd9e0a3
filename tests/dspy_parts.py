"""What the tests of DSPy's seams share: a one-predictor program, data, and a model that answers it with a digit."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from colever.optimizers.dspy_settings import FinetuneSettings
from colever.optimizers.finetune import finetune
from colever.types import Weights

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


class Pick(dspy.Signature):
    """Pick a digit."""

    word: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Picker(dspy.Module):
    """One call."""

    def __init__(self) -> None:
        super().__init__()
        self.pick = dspy.Predict(Pick)

    def forward(self, word: str) -> dspy.Prediction:
        return self.pick(word=word)


def words(count: int) -> list[dspy.Example]:
    return [dspy.Example(word=f"w{i}", answer=str(i % 10)).with_inputs("word") for i in range(count)]


def is_high(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """The behaviour to learn: a digit above 5."""
    return prediction.answer.strip() in {"6", "7", "8", "9"}


def chats(answers: str, count: int) -> list[list[dict[str, str]]]:
    """Conversations in DSPy's format on eight words that pick the digits of ``answers``; every third has a demo."""
    demo = {"word": "w3", "answer": "3"}
    return [
        ADAPTER.format_finetune_data(
            signature=Pick,
            demos=[demo] if i % 3 == 2 else [],
            inputs={"word": f"w{i % 8}"},
            outputs={"answer": answers[i // 8 % len(answers)]},
        )["messages"]
        for i in range(count)
    ]


def teach_digits(engine, folder) -> Weights:
    """Weights with which the tiny random model keeps DSPy's format and picks a digit, each about as often."""
    settings = FinetuneSettings(num_train_epochs=5, learning_rate=3e-3, per_device_train_batch_size=10)
    weights, _ = finetune(engine, Weights(), chats("0123456789", 160), settings, folder)
    engine.load(Weights())
    return weights


def high_share(lm: dspy.LM, count: int = 64, demos: Sequence[dspy.Example] = ()) -> float:
    """How often a high digit is picked, sampled, for the words that are trained on: a tiny model knows no others."""
    program, hits = Picker(), 0
    program.pick.demos = list(demos)
    with dspy.context(lm=lm.copy(temperature=1.0), adapter=ADAPTER):
        for example in words(8) * (count // 8):
            try:
                hits += is_high(example, program(**example.inputs()))
            except dspy.utils.exceptions.AdapterParseError:
                continue
    return hits / count
