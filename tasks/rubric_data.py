"""A rubric → the text of a file that ``rubric_file`` reads: settings where a criterion is of a kind, else names.

Code of the user's own is named by the task that has it, that of a rubric's file by the file beside it. What a name
stands for is told by its digest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError

from colever.tasks.criteria import KINDS
from colever.tasks.description import is_own
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.rubric_tables import as_yaml
from colever.tasks.rubric_text import read_tables
from colever.tasks.source import code_digest

_KIND_OF: Mapping[type, str] = {made: name for name, made in KINDS.items()}
_PLAIN = Criterion("plain", lambda example, prediction, steps: 0.0)


@dataclass(frozen=True)
class RubricData:
    """``text`` in YAML; ``code``: by criterion that is named and not described, the digest of its code.

    ``files``: Python files that ``text`` names as ``task_code/NAME.py``.
    """

    text: str
    digest: str
    code: Mapping[str, str]
    files: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"files": [str(file) for file in self.files]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RubricData:
        return cls(data["text"], data["digest"], data["code"], tuple(map(Path, data["files"])))


def rubric_data(rubric: Rubric, file: Path | str | None = None) -> RubricData:
    """The rubric as data as far as it is data; ``file``: what it was read from. Raises TaskError where that is gone."""
    code = {c.name: code_digest(c.check) for c in rubric.criteria if _settings(c.check) is None}
    tables = [{"name": c.name, **(_settings(c.check) or _named(c)), **_common(c)} for c in rubric.criteria]
    files: list[Path] = []
    if file is not None:
        tables, files = _of_file(Path(file))
    return RubricData(as_yaml(tables), rubric.digest(), code, tuple(files))


def _of_file(file: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Its tables as they are; Python beside it is named as it will lie beside them."""
    tables, files = [dict(table.values) for table in read_tables(file)], []
    for table in tables:
        module, _, name = str(table.get("check", "")).rpartition(":")
        if table.get("kind") == "python" and module.endswith(".py"):
            files.append((file.parent / module).resolve())
            table["check"] = f"task_code/{files[-1].name}:{name}"
    return tables, files


def _settings(check: Any) -> dict[str, Any] | None:
    """Kind and settings of a check that is an object of a kind and says all of itself in JSON."""
    kind = _KIND_OF.get(type(check))
    if kind is None:
        return None
    hints, made = get_type_hints(type(check), include_extras=True), {}
    for field in dataclasses.fields(check):
        value = getattr(check, field.name)
        if not field.init or (field.default is not dataclasses.MISSING and value == field.default):
            continue
        try:
            made[field.name] = json.loads(TypeAdapter(hints[field.name]).dump_json(value))
            back = TypeAdapter(hints[field.name]).validate_json(json.dumps(made[field.name]), strict=True)
        except (TypeError, ValueError, PydanticUserError, PydanticSerializationError):  # what only Python can give
            return None
        if back != value:
            return None
    return {"kind": kind, **made}


def _named(criterion: Criterion) -> dict[str, Any]:
    """A function of an installed package by its name; anything else by the task whose criterion it is."""
    module, name = getattr(criterion.check, "__module__", ""), getattr(criterion.check, "__qualname__", "")
    if module and name.isidentifier() and not is_own(criterion.check) and callable(criterion.check):
        return {"kind": "python", "check": f"{module}:{name}"}
    return {"kind": "task", "criterion": criterion.name}


def _common(criterion: Criterion) -> dict[str, Any]:
    """Weight and what else differs from a plain criterion; of a task's, all of it, since it would keep its own."""
    keys = [f.name for f in dataclasses.fields(Criterion) if f.name not in ("name", "check")]
    values = {key: getattr(criterion, key) for key in keys}
    changed = {k: v for k, v in values.items() if k == "weight" or v != getattr(_PLAIN, k)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
