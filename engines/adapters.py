"""One LoRA adapter per predictor on one model: which is whose, which is switched on, and the files of such a set.

Knows PEFT, names of predictors and files; nothing of programs, requests or training. A set's folder holds
``adapters.json`` (``{"adapters": {predictor: subfolder}}``) and in each subfolder one adapter as PEFT saves it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colever.errors import StoreError, UsageError
from colever.types import Weights, read_json

INDEX_FILE = "adapters.json"


class PredictorAdapters:
    """A ``PeftModel`` with an adapter of its own for every predictor; ``names``: predictor → what PEFT calls it."""

    def __init__(self, model: Any, names: Mapping[str, str]) -> None:
        self.model, self.names = model, dict(names)
        self.activate(next(iter(self.names)))

    @classmethod
    def new(cls, model: Any, predictors: Sequence[str], config: Any) -> PredictorAdapters:
        """Fresh ones as ``config`` says, each with first matrices of its own."""
        from peft import get_peft_model

        names = peft_names(predictors)
        first, *others = names.values()
        wrapped = get_peft_model(model, copy.deepcopy(config), adapter_name=first)
        for name in others:
            wrapped.add_adapter(name, copy.deepcopy(config))
        return cls(wrapped, names)

    @classmethod
    def load(cls, model: Any, folders: Mapping[str, Path]) -> PredictorAdapters:
        """From one folder per predictor; one folder may serve several, each of which then has a copy."""
        from peft import PeftModel

        names = peft_names(list(folders))
        (first, *others) = folders
        wrapped = PeftModel.from_pretrained(model, str(folders[first]), adapter_name=names[first], is_trainable=True)
        for predictor in others:
            wrapped.load_adapter(str(folders[predictor]), names[predictor], is_trainable=True)
        return cls(wrapped, names)

    def name_of(self, predictor: str | None) -> str:
        """What PEFT calls a predictor's adapter; of no predictor (None) the only one. Raises UsageError."""
        if predictor is None and len(self.names) == 1:
            return next(iter(self.names.values()))
        if predictor is None:
            raise UsageError(
                "the weights hold one LoRA adapter per predictor and this call comes from none of them; accepted: a "
                f"call from inside a program with the predictors {', '.join(self.names)}"
            )
        if predictor not in self.names:
            raise UsageError(unknown(predictor, self.names))
        return self.names[predictor]

    def activate(self, predictor: str | None) -> None:
        """Switch on a predictor's adapter and the others off. All stay trainable, which PEFT alone sees otherwise."""
        self.model.set_adapter(self.name_of(predictor))
        self.model.set_requires_grad(list(self.names.values()))

    def each(self, predictors: Sequence[str | None]) -> Iterator[list[int]]:
        """Every predictor's places among ``predictors``, while its adapter is switched on."""
        for predictor in dict.fromkeys(predictors):
            self.activate(predictor)
            yield [place for place, other in enumerate(predictors) if other == predictor]

    def save(self, folder: Path) -> None:
        """The set's files, in ``folder``. Raises OSError."""
        self.model.save_pretrained(str(folder), selected_adapters=list(self.names.values()))
        (folder / INDEX_FILE).write_text(json.dumps({"adapters": self.names}, indent=1), encoding="utf-8")


def peft_names(predictors: Sequence[str]) -> dict[str, str]:
    """A name for each predictor's adapter: unlike any module's, since PEFT finds tensors by it, and without dots."""
    return {p: f"predictor_{i}_{re.sub(r'[^A-Za-z0-9]+', '_', p).strip('_')}" for i, p in enumerate(predictors)}


def adapter_folders(weights: Weights) -> dict[str, Path] | None:
    """The folder of each predictor's adapter; None: the weights are no such set. Raises StoreError."""
    index = Path(weights.path or "") / INDEX_FILE
    if weights.kind != "lora" or not index.is_file():
        return None
    try:
        named = {str(p): str(name) for p, name in read_json(index)["adapters"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"weights {weights.digest}: {index} does not name an adapter per predictor: {error}"
        ) from error
    if not named or any(name != Path(name).name or name == ".." for name in named.values()):
        raise StoreError(f"weights {weights.digest}: {index} must name folders beside it")
    return {predictor: index.parent / name for predictor, name in named.items()}


def check_predictors(weights: Weights, predictors: Sequence[str]) -> None:
    """Raises UsageError where ``weights`` hold one adapter per predictor and none for one of ``predictors``."""
    known = adapter_folders(weights)
    for predictor in predictors if known is not None else ():
        if predictor not in (known or ()):
            raise UsageError(unknown(predictor, known or {}))


def unknown(predictor: str, known: Mapping[str, Any]) -> str:
    """What is said of a predictor without an adapter."""
    made = "a predictor that the program makes as it runs" if predictor == "" else f"predictor {predictor!r}"
    return (
        f"{made} has no LoRA adapter: the weights hold one per predictor, of {', '.join(known)}. They belong to "
        "another program; accepted: a program whose predictors are among these, or weights that all predictors share"
    )
