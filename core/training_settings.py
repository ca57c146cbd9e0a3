"""Who trains one pull of the weight lever, as settings: this process, or several that share the work or the model.

Knows names and what goes together; starts nothing. How a pull is computed is no part of what it is: these settings are
in no key, and may change when a study goes on.
"""

from __future__ import annotations

from typing import Literal

from colever.engine_settings import EngineSettings
from colever.setting import Settings, setting


class TrainingSettings(Settings):
    """The processes that train a pull of the weight lever together; see docs/several-gpus.md."""

    processes: int = setting(1, "so many train each pull together, each on a GPU of its own where there are GPUs", ge=1)
    sharding: Literal["none", "fsdp"] = setting(
        "none", "none: each holds all of the model; fsdp: a share of its parameters, gradients and optimizer state"
    )

    def check(self, engine: EngineSettings) -> None:
        """Raises ValueError for what cannot be had together."""
        if self.processes > 1 and engine.kind == "vllm":
            raise ValueError(
                f"training.processes={self.processes}: each process samples with its own copy of the model; accepted "
                "with it: engine.kind=transformers"
            )
        if self.sharding == "none":
            return
        if self.processes == 1:
            raise ValueError(
                f"training.sharding={self.sharding} needs several processes; accepted with training.processes=1: none"
            )
        if engine.quantization != "none":
            raise ValueError(
                f"engine.quantization={engine.quantization} holds a base that cannot be cut into shares; accepted with "
                "it: training.sharding=none"
            )
