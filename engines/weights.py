"""Which weights a loaded model carries: base, a full set, a LoRA adapter or one per predictor, swapped in place.

Knows the model and files on disk, nothing of requests. The module objects of the model stay the same ones, so
an optimizer or another reader that holds its parameters sees the new values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from colever.engines.adapters import INDEX_FILE, PredictorAdapters, adapter_folders
from colever.errors import StoreError, UsageError
from colever.types import Weights

ADAPTER_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"


class WeightSwap:
    """Holds one model and puts weights into it; ``version`` names what it holds.

    ``frozen``: the model's own tensors are quantized. They never change, and adapters alone can be loaded.
    """

    def __init__(
        self, model: Any, read_base: Callable[[], Mapping[str, torch.Tensor]], *, frozen: bool = False
    ) -> None:
        self.model = model
        self.frozen = frozen
        self.adapter: Any = None  # the PeftModel around ``model`` while LoRA weights are loaded
        self.by_predictor: PredictorAdapters | None = None  # the same where every predictor has its own adapter
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
        self._dirty, self._base_intact = True, self.frozen

    def load(self, weights: Weights) -> None:
        """Make the model hold ``weights``, if it does not already. Raises StoreError if a file is missing or wrong.

        Raises UsageError for full weights where the base is quantized.
        """
        if not self._dirty and weights.kind == self.loaded.kind and weights.digest == self.loaded.digest:
            return
        if self.frozen and weights.kind == "full":
            raise UsageError(
                f"weights {weights.digest} are full weights, and the engine's base is quantized; accepted there: base "
                "weights and adapters, or engine.quantization=none with an unquantized checkpoint"
            )
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
                self._attach(weights)
        self.loaded, self._dirty = weights, False

    def one_each(self, predictors: Sequence[str], config: Any) -> PredictorAdapters:
        """An adapter for each predictor: the loaded set's, copies of the loaded one, or new ones as ``config`` says.

        Raises UsageError where a loaded set has none for one of them.
        """
        if self.by_predictor is None:
            if self.loaded.kind == "lora":
                self._strip_adapters()
                folder = Path(self.loaded.path or "")
                self.by_predictor = PredictorAdapters.load(self.model, dict.fromkeys(predictors, folder))
            else:
                self.by_predictor = PredictorAdapters.new(self.model, predictors, config)
            self.adapter = self.by_predictor.model
        for predictor in predictors:
            self.by_predictor.name_of(predictor)
        return self.by_predictor

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

    def _attach(self, weights: Weights) -> None:
        from peft import PeftModel

        folders = adapter_folders(weights)
        try:
            if folders is None:
                self.adapter = PeftModel.from_pretrained(self.model, str(weights.path), is_trainable=True)
            else:
                self.by_predictor = PredictorAdapters.load(self.model, folders)
                self.adapter = self.by_predictor.model
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"{weights.path} holds no LoRA adapter for this model: {error}") from error

    def _strip_adapters(self) -> None:
        """Take every LoRA layer out of the model, whoever put it in; the base tensors stay as they are."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(self.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                if getattr(module, "merged", False):
                    self._base_intact = False
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module.get_base_layer())
        self.adapter = self.by_predictor = None
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights lie in bytes


def weight_file(weights: Weights) -> Path | None:
    """The file that ``weights`` refers to (None for base, a set's index); raises StoreError if one is not there."""
    if weights.kind == "base":
        return None
    folder, folders = Path(weights.path or ""), adapter_folders(weights)
    if folders is not None:
        file, needed = folder / INDEX_FILE, [f / ADAPTER_FILE for f in folders.values()]
    else:
        file = folder / (ADAPTER_FILE if weights.kind == "lora" else FULL_FILE)
        needed = [file]
    if missing := [f for f in needed if not f.is_file()]:
        raise StoreError(f"weights {weights.digest}: {missing[0]} is missing")
    return file


def file_digest(paths: list[Path]) -> str:
    """Of the content of files, in the given order (first 16 hex digits of SHA-256)."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
