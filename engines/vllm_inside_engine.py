"""The engine whose sampler is vLLM in this process, on the device of the model that is trained; one of them sleeps.

Knows what the engine over a server knows; and that base weights can be swapped in too, since both models are here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from colever.engines.live_adapters import configs_in
from colever.engines.vllm_engine import VllmEngine
from colever.engines.vllm_inside import InsideClient, InsideVllm
from colever.engines.vllm_server import Live, Serving
from colever.types import Weights, digest_of


class InsideVllmEngine(VllmEngine):
    """As ``VllmEngine``, without a server: LoRA adapters and full weights. Raises UsageError where there is no vLLM."""

    served_peft = ("lora", "none")
    _base = Weights().digest  # of the tensors that vLLM holds beneath adapters

    def _vllm(self, serving: Serving) -> InsideVllm:
        return InsideVllm(serving, self.source, self.device.type, self.dtype)

    @property
    def adapters_only(self) -> bool:
        return False

    @cached_property
    def digest(self) -> str:
        return digest_of([super().digest, "in process"])

    def rest(self) -> None:
        """vLLM's memory for the trainer: it sleeps until the next request, where the device lets it."""
        self.server.rest()

    def _loaded(self, live: Live, configs: Any) -> dict[str | None, str]:
        wanted = self._base_version()
        if wanted != self._base:
            client = live.client
            assert isinstance(client, InsideClient)
            self._base = "unknown"  # until it is known to have gone well
            client.fill(self._base_tensors())
            self._base = wanted
        return super()._loaded(live, configs)

    def _base_version(self) -> str:
        """What names the state of the model's own tensors: adapters leave them as they were loaded."""
        if not configs_in(self.model):
            return self.version
        return self.weights.digest if self.weights.kind == "full" else Weights().digest

    def _base_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """By their names in a checkpoint; a head that is tied too, which vLLM 0.32 keeps packed on a CPU otherwise."""
        for name, tensor in self.model.state_dict().items():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor.detach()
