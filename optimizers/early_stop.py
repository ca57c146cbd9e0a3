"""When a pull has trained enough: a score on held-out examples along the updates, and the best weights kept.

Knows scores and a model's trainable parameters; knows nothing of rollouts or rewards. The examples are held out
of train, never dev: dev decides whether the pull's child is kept, and a score that was chosen on it would flatter it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colever.engines.calls import stable_seed
from colever.errors import LeverError
from colever.optimizers.processes import Team
from colever.optimizers.writing import writing

if TYPE_CHECKING:
    import dspy

NEVER = -1.0  # below any score


@dataclass
class EarlyStop:
    """The best held-out score so far, and how many looks ago that was."""

    folder: Path
    patience: int
    best: float = NEVER
    best_update: int = 0
    waited: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def look(self, update: int, score: float, model: Any) -> bool:
        """Book the score after ``update`` updates, keep the weights if it is the best; whether to stop.

        A later score that only equals the best does not replace it: what was reached with less training stays.
        """
        self.curve = [*(point for point in self.curve if point[0] < update), (update, score)]
        if score > self.best:
            self.best, self.best_update, self.waited = score, update, 0
            Team.current().by_main(lambda: self._save(model))
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self, model: Any) -> None:
        """Put the best weights back, unless the last look was the best."""
        if self.curve and self.curve[-1][0] == self.best_update:
            return
        from safetensors.torch import load_file

        kept = load_file(str(self._file))
        for name, parameter in _trainable(model).items():
            parameter.data.copy_(kept[name])

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_update": self.best_update, "waited": self.waited, "curve": self.curve}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on from what ``to_json`` gave."""
        self.best, self.best_update = float(memory["best"]), int(memory["best_update"])
        self.waited = int(memory["waited"])
        self.curve = [(int(update), float(score)) for update, score in memory["curve"]]

    @property
    def _file(self) -> Path:
        return self.folder / "best.safetensors"

    def _save(self, model: Any) -> None:
        from safetensors.torch import save_file

        fresh = self._file.with_suffix(".tmp")
        with writing("the best weights so far", self._file, fresh):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({n: p.detach().contiguous() for n, p in _trainable(model).items()}, str(fresh))
            os.replace(fresh, self._file)


def _trainable(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def hold_out(
    examples: Sequence[tuple[str, dspy.Example]], count: int, seed: int
) -> tuple[list[tuple[str, dspy.Example]], list[tuple[str, dspy.Example]]]:
    """The examples to train on, and ``count`` drawn by ``seed`` to stop early by."""
    if count >= len(examples) > 0:
        raise LeverError(f"weights.validation={count}: train has {len(examples)} examples, so that none is left")
    order = np.random.Generator(np.random.Philox(key=stable_seed(seed, "validation"))).permutation(len(examples))
    held = set(order[:count].tolist())
    kept = [example for i, example in enumerate(examples) if i not in held]
    return kept, [example for i, example in enumerate(examples) if i in held]
