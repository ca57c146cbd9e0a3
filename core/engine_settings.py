"""What answers the program's calls, as settings: a model in this process, or a vLLM server beside it.

Knows names and what goes together; starts nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from colever.setting import Settings, setting


class EngineSettings(Settings):
    """The engine: what samples, and the model in this process, which is trained in any case."""

    kind: Literal["transformers", "vllm"] = setting(
        "transformers", "what samples: the model in this process, or a vLLM server; see docs/vllm.md"
    )
    device: str = setting("auto", "auto, cpu, or cuda")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "of weights and activations")
    quantization: Literal["none", "nf4"] = setting(
        "none", "nf4: linear layers held in 4 bit, adapters alone trained (QLoRA); needs the extra qlora"
    )
    max_batch_tokens: int = setting(
        0,
        "prompt and completion tokens of the requests that run together; 0: 32768 on a CPU, on a GPU what fills a "
        "fifth of its memory with keys and values",
        ge=0,
    )
    vllm_mode: Literal["server", "in_process"] = setting(
        "server", "vLLM beside this process, or in it: on one GPU it sleeps while the trainer works"
    )
    vllm_python: str | None = setting(
        None, "python of an environment with vLLM; unset: COLEVER_VLLM_PYTHON, or this one"
    )
    vllm_url: str | None = setting(
        None, "a server that runs already, such as http://127.0.0.1:8000; unset: one is started for the study"
    )
    vllm_args: tuple[str, ...] = setting((), "further arguments of a server that is started: [--max-model-len, '8192']")
    vllm_start: float = setting(600.0, "seconds that a server has to start", gt=0)

    @model_validator(mode="after")
    def _served_whole(self) -> EngineSettings:
        if self.kind == "vllm" and self.quantization != "none":
            raise ValueError(
                f"engine.quantization={self.quantization}: the server would sample from other weights than those that "
                "are trained; accepted with engine.kind=vllm: none"
            )
        if self.vllm_mode == "in_process" and (self.vllm_url or self.vllm_python):
            name = "vllm_url" if self.vllm_url else "vllm_python"
            raise ValueError(f"engine.{name}: there is no server with engine.vllm_mode=in_process; accepted: unset")
        return self

    def in_process(self) -> dict[str, Any]:
        """What the model in this process is opened with, whatever samples."""
        return self.model_dump(include={"device", "dtype", "quantization", "max_batch_tokens"})

    def check_peft(self, peft: str) -> None:
        """Raises ValueError where weights trained so cannot be swapped into a server that runs."""
        if self.kind == "vllm" and self.vllm_mode == "in_process" and peft == "dora":
            raise ValueError("weights.peft=dora: vLLM takes no DoRA adapters; accepted with engine.kind=vllm: lora")
        if self.kind == "vllm" and self.vllm_mode == "server" and peft not in ("auto", "lora"):
            raise ValueError(
                f"weights.peft={peft}: a vLLM server that runs takes LoRA adapters alone; accepted with "
                "engine.kind=vllm: lora or auto"
            )
