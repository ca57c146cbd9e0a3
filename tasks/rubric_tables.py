"""A rubric as the tables that a file has of it, so that a variant can be made, written, and read back like any file.

Knows tables and YAML; what a key means stands in ``rubric_file``. Of a task's own rubric each criterion is a table of
kind ``task``: its code stays where it is, and what a variant says (weight, gate) wins over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from colever.errors import TaskError
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.rubric_text import NUMBERS, read_tables
from colever.tasks.source import code_digest

Tables = Sequence[Mapping[str, Any]]
ENDINGS = (".yaml", ".yml")


def tables_of(rubric: Rubric) -> list[dict[str, Any]]:
    """Of a task's own rubric."""
    return [{"name": c.name, "kind": "task"} for c in rubric.criteria]


def tables_in(file: Path) -> list[dict[str, Any]]:
    """Of a rubric's file; files of Python that lie beside it are named by their whole path. Raises TaskError."""
    return [_rooted(dict(table.values), file.parent) for table in read_tables(file)]


def write_tables(tables: Tables, file: Path, head: str = "") -> None:
    """As YAML, all of it or nothing; ``head`` is a comment. Raises TaskError where it cannot be written."""
    if file.suffix not in ENDINGS:
        raise TaskError(f"{file}: a rubric is written as YAML; accepted: a name that ends in {' or '.join(ENDINGS)}")
    said = "".join(f"# {line}\n" for line in head.splitlines())
    text = as_yaml(tables)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(said + text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TaskError(f"{file}: cannot be written: {error.strerror or error}") from error


def as_yaml(tables: Tables) -> str:
    """The text of a rubric's file."""
    return yaml.dump(
        {"criterion": [dict(t) for t in tables]}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )


def changes(before: Rubric, after: Rubric) -> list[str]:
    """What a rubric changes of another, a line for each criterion that is not the same."""
    old, new = {c.name: c for c in before.criteria}, {c.name: c for c in after.criteria}
    shares = _shares(before), _shares(after)
    lines = []
    for name, criterion in new.items():
        if name not in old:
            lines.append(f"{name}: new, {shares[1][name]:.0%} of the weight{''.join(_gate(criterion))}")
        elif said := list(_changed(old[name], criterion, shares[0][name], shares[1][name])):
            lines.append(f"{name}: {', '.join(said)}")
    return lines + [f"{name}: left out, was {shares[0][name]:.0%} of the weight" for name in old if name not in new]


def _changed(old: Criterion, new: Criterion, before: float, after: float) -> Iterator[str]:
    if f"{before:.0%}" != f"{after:.0%}":
        yield f"{before:.0%} → {after:.0%} of the weight"
    for field in ("gate", "clip", "stage", "form", "hint", "predictor"):
        if getattr(old, field) != getattr(new, field):
            yield f"{field} {_said(getattr(old, field))} → {_said(getattr(new, field))}"
    if old.check is not new.check and code_digest(old.check) != code_digest(new.check):
        yield "another check"


def _gate(criterion: Criterion) -> Iterator[str]:
    if criterion.gate is not None:
        yield f", gate {criterion.gate:g}"


def _said(value: Any) -> str:
    return "none" if value is None or value == "" else repr(value) if isinstance(value, str) else f"{value}"


def _shares(rubric: Rubric) -> dict[str, float]:
    total = sum(c.weight for c in rubric.criteria)
    return {c.name: c.weight / total for c in rubric.criteria}


def _rooted(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    module, colon, name = str(table.get("check", "")).rpartition(":")
    if table.get("kind") == "python" and colon and module.endswith(".py"):
        table["check"] = f"{(folder / module).resolve()}:{name}"
    return table


class _Dumper(yaml.SafeDumper):
    """Without anchors, which a rubric's file may not have; a text that would be read as a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(*NUMBERS)
