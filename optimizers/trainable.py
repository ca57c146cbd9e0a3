"""The engine's own model made ready to be trained in place, and what was trained as files.

Knows the engine, PEFT and safetensors; knows nothing of rewards, rows or trainers.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.config import WeightSettings
from colever.optimizers.writing import writing
from colever.types import Weights, digest_of

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine


def resolved(settings: WeightSettings, model: str) -> WeightSettings:
    """With ``peft=auto`` decided: the seed model is small enough to train whole, any other gets an adapter."""
    if settings.peft != "auto":
        return settings
    return settings.model_copy(update={"peft": "none" if model == "seed" else "lora"})


@contextmanager
def trainable(engine: TransformersEngine, parent: Weights, settings: WeightSettings, seed: int) -> Iterator[Any]:
    """The engine's own model holding ``parent``, ready to be trained in place; on an error the parent comes back.

    An adapter as the parent is trained on as it is, whatever its rank and whether LoRA or DoRA; full weights trained
    from such a parent start merged.
    """
    import torch

    engine.load(parent)
    torch.manual_seed(seed)
    try:
        model = engine.adapter if parent.kind == "lora" else engine.model
        if settings.peft == "none":
            if parent.kind == "lora":
                model = model.merge_and_unload()
            model.requires_grad_(True)
        elif parent.kind != "lora":
            from peft import LoraConfig, get_peft_model

            how = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=0.0,
                use_dora=settings.peft == "dora",  # arXiv:2402.09353: a direction by LoRA, and a magnitude per output
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, how)
        yield model
        engine.touched()
    except BaseException:  # an interrupt too: the parent comes back, then it goes on up
        engine.touched()
        engine.load(parent)
        raise
    finally:
        engine.model.__dict__.pop("forward", None)  # a trainer that failed while it was made has left its own
        gc.collect()


def save_weights(
    model: Any, engine: TransformersEngine, parent: Weights, settings: WeightSettings, folder: Path
) -> Weights:
    """The trained weights in ``folder``, written aside and renamed; an adapter on full weights is saved merged."""
    from safetensors.torch import save_file

    from colever.engines.weights import ADAPTER_FILE, FULL_FILE, file_digest

    lora = settings.peft != "none" and parent.kind != "full"
    temporary = folder.with_name(folder.name + ".tmp")
    with writing("the trained weights", folder, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if lora:
            model.save_pretrained(str(temporary))
            kind = model.peft_config["default"]
            parts = [file_digest([temporary / ADAPTER_FILE]), kind.r, kind.lora_alpha]
            digest = digest_of([*parts, "dora"] if kind.use_dora else parts)
        else:
            if settings.peft != "none":
                model.merge_and_unload()
            tied = set(getattr(engine.model, "all_tied_weights_keys", None) or ())
            tensors = {n: t.detach().contiguous() for n, t in engine.model.state_dict().items() if n not in tied}
            save_file(tensors, str(temporary / FULL_FILE), metadata={"format": "pt"})
            digest = file_digest([temporary / FULL_FILE])
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    return Weights("lora" if lora else "full", str(folder), digest)
