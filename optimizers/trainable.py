"""The engine's own model made ready to be trained in place, and what was trained as files.

Knows the engine, PEFT and safetensors; knows nothing of rewards, rows or trainers.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.config import WeightSettings
from colever.errors import UsageError
from colever.optimizers.writing import writing
from colever.types import Weights, digest_of

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine


def resolved(settings: WeightSettings, model: str, adapters_only: bool = False) -> WeightSettings:
    """With ``peft=auto`` decided: the seed model is small enough to train whole, any other gets an adapter.

    Adapters per predictor, and an engine that takes ``adapters_only``, need adapters, on the seed model too.
    """
    if settings.peft != "auto":
        return settings
    whole = model == "seed" and settings.adapters == "shared" and not adapters_only
    return settings.model_copy(update={"peft": "none" if whole else "lora"})


@contextmanager
def trainable(
    engine: TransformersEngine, parent: Weights, settings: WeightSettings, seed: int, predictors: Sequence[str] = ()
) -> Iterator[Any]:
    """The engine's own model holding ``parent``, ready to be trained in place; on an error the parent comes back.

    An adapter as the parent is trained on as it is, whatever its rank and whether LoRA or DoRA; full weights trained
    from such a parent start merged. With an adapter per predictor (``predictors``: their names) a parent's single one
    is copied for each. Raises UsageError where the parent cannot be trained on as the settings say.
    """
    import torch

    _check(engine, parent, settings)
    engine.load(parent)
    engine.rest()
    torch.manual_seed(seed)
    try:
        yield _model(engine, parent, settings, predictors)
        engine.touched()
    except BaseException:  # an interrupt too: the parent comes back, then it goes on up
        engine.touched()
        engine.load(parent)
        raise
    finally:
        engine.model.__dict__.pop("forward", None)  # a trainer that failed while it was made has left its own
        gc.collect()


def _check(engine: TransformersEngine, parent: Weights, settings: WeightSettings) -> None:
    from colever.engines.adapters import adapter_folders

    if settings.peft == "none" and engine.quantized:
        raise UsageError(
            "weights.peft=none trains all weights, and the engine's base is quantized (engine.quantization="
            f"{engine.quantization}), so that it cannot be trained; accepted: weights.peft=lora or dora, or an engine "
            "that is not quantized"
        )
    if engine.served_peft is not None and settings.peft not in engine.served_peft:
        raise UsageError(
            f"weights.peft={settings.peft}: the engine samples from vLLM, which does not take such weights as it runs; "
            f"accepted with engine.kind=vllm: weights.peft=auto or {' or '.join(engine.served_peft)}"
        )
    if settings.adapters == "shared" and adapter_folders(parent) is not None:
        raise UsageError(
            f"weights {parent.digest} hold one adapter per predictor, which cannot be joined in one (weights.adapters="
            f"shared, weights.peft={settings.peft}); accepted: weights.adapters=per_predictor, or other weights"
        )
    if settings.adapters == "per_predictor" and parent.kind == "full":
        raise UsageError(
            f"weights {parent.digest} are full weights, in which adapters are saved merged, and those of several "
            "predictors cannot be (weights.adapters=per_predictor); accepted: base weights or adapters"
        )


def _model(engine: TransformersEngine, parent: Weights, settings: WeightSettings, predictors: Sequence[str]) -> Any:
    """What is trained: the engine's model, or the ``PeftModel`` around it."""
    if settings.adapters == "per_predictor":
        return engine.one_adapter_each(predictors, _config(settings)).model
    model = engine.adapter if parent.kind == "lora" else engine.model
    if settings.peft == "none":
        if parent.kind == "lora":
            model = model.merge_and_unload()
        model.requires_grad_(True)
    elif parent.kind != "lora":
        from peft import get_peft_model

        model = get_peft_model(model, _config(settings))
    return model


def _config(settings: WeightSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        use_dora=settings.peft == "dora",  # arXiv:2402.09353: a direction by LoRA, and a magnitude per output
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def save_weights(
    model: Any, engine: TransformersEngine, parent: Weights, settings: WeightSettings, folder: Path
) -> Weights:
    """The trained weights in ``folder``, written aside and renamed; an adapter on full weights is saved merged."""
    from safetensors.torch import save_file

    from colever.engines.weights import FULL_FILE, file_digest

    lora = settings.peft != "none" and parent.kind != "full"
    temporary = folder.with_name(folder.name + ".tmp")
    with writing("the trained weights", folder, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if engine.adapters is not None:
            engine.adapters.save(temporary)
            names = sorted(engine.adapters.names.items())
            digest = digest_of([[p, _adapter_parts(model.peft_config[name], temporary / name)] for p, name in names])
        elif lora:
            model.save_pretrained(str(temporary))
            digest = digest_of(_adapter_parts(model.peft_config["default"], temporary))
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


def _adapter_parts(config: Any, folder: Path) -> list[Any]:
    """What a digest of one saved adapter is made of."""
    from colever.engines.weights import ADAPTER_FILE, file_digest

    parts = [file_digest([folder / ADAPTER_FILE]), config.r, config.lora_alpha]
    return [*parts, "dora"] if config.use_dora else parts
