"""Which weights a loaded model carries: base, a full set or a LoRA adapter, swapped in place.

Knows the model and files on disk, nothing of requests. The module objects of the model stay the same ones, so
an optimizer or another reader that holds its parameters sees the new values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from colever.errors import StoreError
from colever.types import Weights

ADAPTER_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"


class WeightSwap:
    """Holds one model and puts weights into it; ``version`` names what it holds."""

    def __init__(self, model: Any, read_base: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        self.model = model
        self.adapter: Any = None  # the PeftModel around ``model`` while a LoRA adapter is loaded
        self.loaded = Weights()
        self._read_base = read_base
        self._touched = 0
        self._dirty = False  # changed in place since the last load
        self._base_intact = True  # the model's own tensors hold the base weights

    @property
    def version(self) -> str:
        """The digest of the loaded weights; with the count of changes in place while there are any."""
        return f"{self.loaded.digest}+{self._touched}" if self._dirty else self.loaded.digest

    def touched(self) -> None:
        """The model was trained in place."""
        self._touched += 1
        self._dirty, self._base_intact = True, False

    def load(self, weights: Weights) -> None:
        """Make the model hold ``weights``, if it does not already. Raises StoreError if a file is missing or wrong."""
        if not self._dirty and weights.kind == self.loaded.kind and weights.digest == self.loaded.digest:
            return
        file = weight_file(weights)  # before anything is changed
        self._strip_adapters()
        if weights.kind == "full":
            from safetensors.torch import load_file

            self._fill(load_file(str(file)), str(file))
            self._base_intact = False
        else:
            if not self._base_intact:
                self._fill(self._read_base(), "the model's own checkpoint")
                self._base_intact = True
            if weights.kind == "lora":
                self._attach(Path(weights.path or ""))
        self.loaded, self._dirty = weights, False

    def _fill(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        self._dirty, self._base_intact = True, False  # until it is known to have gone well
        try:
            missing, unexpected = self.model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise StoreError(f"{source} does not fit the model: {error}") from error
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        lost = [k for k in missing if k not in tied]
        if lost or unexpected:
            raise StoreError(f"{source} does not fit the model: missing {lost[:3]}, unexpected {list(unexpected)[:3]}")
        self.model.tie_weights()

    def _attach(self, folder: Path) -> None:
        from peft import PeftModel

        try:
            self.adapter = PeftModel.from_pretrained(self.model, str(folder), is_trainable=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"{folder} holds no LoRA adapter for this model: {error}") from error

    def _strip_adapters(self) -> None:
        """Take every LoRA layer out of the model, whoever put it in; the base tensors stay as they are."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(self.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                if getattr(module, "merged", False):
                    self._base_intact = False
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module.get_base_layer())
        if self.adapter is not None or hasattr(self.model, "peft_config"):
            self.adapter = None
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config
        self.model.requires_grad_(True)


def weight_file(weights: Weights) -> Path | None:
    """The file that ``weights`` refers to (None for base); raises StoreError if it is not there."""
    if weights.kind == "base":
        return None
    file = Path(weights.path or "") / (ADAPTER_FILE if weights.kind == "lora" else FULL_FILE)
    if not file.is_file():
        raise StoreError(f"weights {weights.digest}: {file} is missing")
    return file


def file_digest(paths: list[Path]) -> str:
    """Of the content of files, in the given order (first 16 hex digits of SHA-256)."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
