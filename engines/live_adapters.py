"""The LoRA adapters that are in a model now, as the files that PEFT and vLLM read; saved while they are trained.

Knows PEFT's layers and file names; nothing of who trains them or who reads the files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from colever.engines.weights import ADAPTER_FILE
from colever.errors import UsageError


def configs_in(model: Any) -> Mapping[str, Any]:
    """PEFT's configuration of each adapter in ``model``, by PEFT's name of it."""
    return dict(getattr(model, "peft_config", None) or {})


def write_adapter(model: Any, name: str, folder: Path) -> None:
    """The adapter that PEFT calls ``name``, in a new ``folder``. Raises OSError, UsageError for DoRA."""
    from safetensors.torch import save_file

    config = copy.deepcopy(configs_in(model)[name])
    if getattr(config, "use_dora", False):
        raise UsageError("weights.peft=dora: a vLLM server takes no DoRA adapters; accepted there: lora")
    tensors: dict[str, torch.Tensor] = {}
    for place, layer in model.named_modules():
        for part in ("lora_A", "lora_B"):
            matrices: Any = getattr(layer, part, None)
            if isinstance(matrices, torch.nn.ModuleDict) and name in matrices:
                weight: Any = matrices[name].weight
                tensors[f"base_model.model.{place}.{part}.weight"] = weight.detach().cpu().contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / ADAPTER_FILE), metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))
