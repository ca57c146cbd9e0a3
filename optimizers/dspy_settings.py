"""What DSPy's ``train_kwargs`` may say to Colever: names, types, defaults and bounds. Knows nothing of what they do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from colever.config import Settings, WeightSettings
from colever.errors import UsageError

S = TypeVar("S", bound=Settings)


class TrainSettings(Settings):
    """What supervised and reinforced training have in common; meanings and defaults as in ``WeightSettings``."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    peft: Literal["none", "lora", "dora"] = "none"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    output_dir: Path | None = None  # where the weights go; None: below DSPy's own folder for finetuning

    def weights(self) -> WeightSettings:
        """As the weight lever wants to be told which tensors are trained."""
        return WeightSettings(peft=self.peft, lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)


class FinetuneSettings(TrainSettings):
    """Supervised training (``dspy.BootstrapFinetune``)."""

    num_train_epochs: float = Field(default=3, gt=0)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=0, ge=0)  # updates of linear warm-up, constant after that


class ReinforceSettings(TrainSettings):
    """Updates on the groups that DSPy's GRPO hands over."""

    groups_per_update: int = Field(default=1, ge=1)  # DSPy's examples per step × predictors × calls of each
    num_generations: int | None = None  # DSPy says it; the groups say it too
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=0, ge=0)
    beta: float = Field(default=0.0, ge=0)
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    batch_tokens: int = Field(default=0, ge=0)
    max_updates: int = Field(default=10_000, ge=1)


def checked(kind: type[S], values: Mapping[str, Any], argument: str) -> S:
    """``kind(**values)``. Raises UsageError that names the argument, the key and what is accepted."""
    try:
        return kind(**values)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            key = ".".join(map(str, e["loc"]))
            if e["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key; accepted: {', '.join(sorted(kind.model_fields))}")
            else:
                lines.append(f"{key}: {e['msg']}, got {e['input']!r}")
        raise UsageError(f"{argument}: {'; '.join(lines)}") from None
