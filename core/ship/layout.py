"""What a bundle holds, file by file, and its manifest as it must be. Knows names and types; reads nothing.

    manifest.json   this file's ``Manifest``: what made it, references, and every other file's size and digest
    program.json    instructions and demos by predictor
    rubric.yaml     the rubric as ``--rubric`` reads it
    weights/        a LoRA adapter, one for each predictor, or a full set; not there where no weights were trained
    model/          a whole checkpoint in their place (``--merge``)
    task_code/      a task file of the user's own and what it imports from beside it
    report.json, report.html, serve.py

Everything else that a folder holds makes it no bundle.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from colever.config import EngineSettings
from colever.types import PredictorPrompt

FORMAT: Literal["colever-bundle/1"] = "colever-bundle/1"
MANIFEST, PROGRAM, RUBRIC = "manifest.json", "program.json", "rubric.yaml"
WEIGHTS, MODEL, CODE = "weights", "model", "task_code"  # code/ would hide a module of Python from serve.py
LONGEST_PATH = 200
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,7}")
_FLAT = re.compile(r"(manifest|program|report)\.json|rubric\.yaml|report\.html|serve\.py")
_INSIDE = {WEIGHTS: (".json", ".safetensors"), MODEL: (".json", ".safetensors"), CODE: (".py",)}

Text = Annotated[str, Field(max_length=4096)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Types as they are written, and no keys but these."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ListedFile(Strict):
    """One file: its bytes and the SHA-256 of them."""

    bytes: int = Field(ge=0)
    sha256: Digest


class TaskReference(Strict):
    """A task by name (``arithmetic``), in an installed package (``package.module:attr``) or in ``task_code/x.py:attr``.

    ``data`` names the rows, where the task was handed some. ``inputs`` are the fields that the program takes.
    """

    name: Text
    data: Text | None = None
    digest: Text = ""
    inputs: list[Text] = Field(max_length=256)


class ModelReference(Strict):
    """The model under the weights; ``digest`` of its checkpoint's files, "" where they are not at hand."""

    name: Text
    digest: Text = ""
    engine: EngineSettings = Field(default_factory=EngineSettings)


class WeightsReference(Strict):
    """``path`` lies in the bundle; ``model/`` is a whole checkpoint."""

    kind: Literal["base", "lora", "full"] = "base"
    path: Text | None = None
    digest: Text = "base"


class RubricReference(Strict):
    """``code``: by criterion, the digest of what a name stands for where the rubric names code."""

    digest: Text
    code: dict[Text, Text] = Field(default_factory=dict)


class Manifest(Strict):
    """``trial`` and ``round`` say what it is of: the winner, base, a trial (``2``) or a round (``2.1``)."""

    format: Literal["colever-bundle/1"]
    study: Text
    which: Text
    schedule: Text = ""
    candidate: Text  # the digest of prompts and weights
    task: TaskReference
    model: ModelReference
    weights: WeightsReference
    rubric: RubricReference | None = None
    measured: dict[Text, float] = Field(default_factory=dict)  # test_score, test_gold
    versions: dict[Text, Text] = Field(default_factory=dict)
    files: dict[Text, ListedFile] = Field(max_length=2000)

    @field_validator("files")
    @classmethod
    def _paths(cls, value: dict[str, ListedFile]) -> dict[str, ListedFile]:
        for path in value:
            if not accepted(path):
                raise ValueError(f"files: {path[:80]!r} is no file of a bundle")
        return value


class Prompt(Strict):
    """One predictor's instruction and demos."""

    instructions: str
    demos: list[dict[str, Any]] = Field(default_factory=list)
    nearest: int = Field(default=0, ge=0)

    def made(self) -> PredictorPrompt:
        return PredictorPrompt(self.instructions, tuple(self.demos), self.nearest)


class Program(Strict):
    """``program.json``."""

    prompts: dict[str, Prompt]


def accepted(path: str) -> bool:
    """Whether a bundle may hold a file of that name: relative, plain, of a kind that belongs where it is."""
    if len(path) > LONGEST_PATH or not _PATH.fullmatch(path):
        return False
    folder, slash, _ = path.partition("/")
    if not slash:
        return _FLAT.fullmatch(path) is not None
    return path.endswith(_INSIDE.get(folder, ()))
