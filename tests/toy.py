"""Small hand-written parts: an engine that answers by rule, a task on it, and a weight lever that writes a number.

The whole path is the real one (DSPy programs, rollouts, rubric, store, Optuna); only the model is a rule: it knows a
share of the questions, more with the right wording, with demos, and with trained weights.
"""

from __future__ import annotations

import re
import threading
import zlib
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from colever.config import Settings
from colever.optimizers.budget import Budget
from colever.optimizers.lever import Progress, Pull
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Candidate, Cost, Weights, digest_of

GOOD = "Work in steps and then answer."
BAD = "Answer at once."


class ToyEngine:
    """Right on a question if its hash lies below the skill: 0.4, +0.2 for the good wording, +0.02 a demo, + weights."""

    name = "toy"
    digest = "toy-engine"

    def __init__(self) -> None:
        self.skill, self.calls, self._lock = 0.0, 0, threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> ToyEngine:
        return self

    @property
    def meter(self) -> Cost:
        return Cost(prompt_tokens=10 * self.calls, completion_tokens=2 * self.calls, flops=1e6 * self.calls)

    def load(self, weights: Weights) -> None:
        self.skill = float((Path(weights.path) / "model.safetensors").read_text()) if weights.path else 0.0

    def complete(self, request: lm15.Request) -> lm15.Response:
        with self._lock:
            self.calls += 1
        system = (
            " ".join(p.text for p in request.system)
            if isinstance(request.system, tuple | list)
            else str(request.system)
        )
        texts = [" ".join(getattr(p, "text", "") for p in m.parts) for m in request.messages]
        question = re.findall(r"\d+ \+ \d+", texts[-1])[0]
        demos = len(texts) // 2
        skill = 0.4 + 0.2 * (GOOD in system) + 0.02 * min(demos, 5) + self.skill
        right = zlib.crc32(question.encode()) % 1000 < 1000 * skill
        a, b = map(int, question.split(" + "))
        text = f"[[ ## answer ## ]]\n{a + b if right else 'no idea'}\n\n[[ ## completed ## ]]"
        return lm15.Response(
            id="toy", model="toy", message=lm15.Message.assistant([lm15.TextPart(text)]), finish_reason="stop",
            usage=lm15.Usage(input_tokens=10, output_tokens=2, total_tokens=12),
        )  # fmt: skip


class Adder(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict(dspy.Signature("question -> answer", "Solve it."))

    def forward(self, question: str) -> dspy.Prediction:
        return self.solve(question=question)


def right(example: dspy.Example, prediction: dspy.Prediction, steps: Any = ()) -> float:
    return float(prediction.answer.strip() == example.answer)


def _rows(start: int, count: int) -> list[dspy.Example]:
    pairs = [(start + i, 3 * i + 1) for i in range(count)]
    return [dspy.Example(question=f"{a} + {b}", answer=str(a + b)).with_inputs("question") for a, b in pairs]


def toy_task(**changes: Any) -> Task:
    rubric = Rubric([Criterion("right", right, 3), Criterion("number", lambda e, p, s: p.answer.strip().isdigit(), 1)])
    fields: dict[str, Any] = {
        "name": "toy", "program": Adder, "train": _rows(0, 60), "dev": _rows(1000, 60), "test": _rows(2000, 80),
        "rubric": rubric, "gold": right, "instructions": {"solve": (BAD, GOOD)}, "watched": {"far": _rows(9000, 20)},
    }  # fmt: skip
    return Task(**{**fields, **changes})


class ToyWeightSettings(Settings):
    updates: int = 3
    gain: float = 0.1


class ToyWeightLever:
    """Adds to the skill, update by update, and keeps the count in its work folder, as a trainer keeps checkpoints."""

    name = "weights"

    def __init__(self, settings: ToyWeightSettings, on_update: Any = lambda: None) -> None:
        self.settings, self.on_update = settings, on_update

    def improve(
        self,
        candidate: Candidate,
        task: Task,
        engine: ToyEngine,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress,
    ) -> Pull:
        checkpoint = workdir / "updates"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        budget.charge(Cost(rollouts=8 * done, trained_tokens=100 * done))
        for update in range(done, self.settings.updates):
            budget.reserve(rollouts=8)
            self.on_update()
            budget.charge(Cost(rollouts=8, trained_tokens=100))
            checkpoint.write_text(str(update + 1))
            progress.update(update + 1, self.settings.updates, "updates")
        engine.load(candidate.weights)
        skill = engine.skill + self.settings.gain
        folder = workdir / "weights"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(str(skill))
        weights = Weights("full", str(folder), digest_of(skill))
        return Pull(
            Candidate(candidate.prompts, weights),
            {"train/reward": [(0, 0.1), (1, 0.2)]},
            {"updates": self.settings.updates},
        )
