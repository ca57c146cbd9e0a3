"""A rubric's file as text: TOML or YAML, read into tables that know on which line they and their keys stand.

Knows the two formats and how large a file may be; what a key means stands in ``rubric_file``. Aliases are refused in
YAML: a few lines of them unfold without end.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from colever.errors import TaskError

MOST = 256 * 1024  # bytes of a rubric's file
SHAPE = "[[criterion]] tables, each with a name and a kind"
_TABLE = re.compile(r"""\s*\[\[\s*["']?criterion["']?\s*\]\]""")
_INNER = re.compile(r"""\s*\[\[?\s*["']?criterion["']?\s*\.\s*["']?([\w-]+)""")
_HEADER = re.compile(r"""\s*\[\[?[\w."' -]+\]\]?\s*(#.*)?$""")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*[=.]""")
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
NUMBERS = ("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))  # that YAML 1.1 takes for texts


@dataclass(frozen=True)
class Table:
    """One criterion as it is written, with the lines of the table and of its keys; 0: not known."""

    values: Mapping[str, Any]
    line: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)

    def line_of(self, key: str = "") -> int:
        return self.lines.get(key, self.line)


def read_tables(file: Path) -> list[Table]:
    """The tables of a rubric's file. Raises TaskError that names the file and, where it is known, the line."""
    if file.suffix not in (".toml", ".yaml", ".yml"):
        raise TaskError(f"{file}: not a rubric's file; accepted: one that ends in .toml, .yaml or .yml")
    text = _text(file)
    try:
        data, tables = _of_toml(text) if file.suffix == ".toml" else _of_yaml(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise refused(file, int(at[1]) if at else 0, f"not TOML: {str(error).split(' (at ')[0]}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise refused(file, mark.line + 1 if mark else 0, f"not YAML: {problem or str(error)}") from None
    except _Misplaced as error:
        raise refused(file, error.line, str(error)) from None
    except (ValueError, RecursionError) as error:  # numbers and nestings that no parser takes
        raise refused(file, 0, f"cannot be read: {error}; accepted: {SHAPE}") from None
    return _checked(file, text, data, tables)


def refused(file: Path, line: int, text: str) -> TaskError:
    """``rubric.toml: line 4: …``."""
    return TaskError(f"{file}: line {line}: {text}" if line else f"{file}: {text}")


class _Misplaced(Exception):
    """What YAML allows and a rubric does not."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST + 1)
    except OSError as error:
        raise TaskError(f"{file}: cannot be read: {error.strerror or error}; accepted: a rubric's file") from error
    if len(content) > MOST:
        raise TaskError(f"{file}: more than {MOST // 1024} KiB; accepted: a rubric's file, a few lines a criterion")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise refused(file, line, "not UTF-8; accepted: text in UTF-8") from None
    if not text.strip():
        raise TaskError(f"{file}: is empty; accepted: {SHAPE}")
    return text


def _checked(file: Path, text: str, data: Any, tables: list[Table]) -> list[Table]:
    """Raises TaskError where the file is not a list of criteria and nothing else."""
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise TaskError(f"{file}: holds a {type(data).__name__}; accepted: {SHAPE} (YAML: a list under 'criterion')")
    if unknown := [key for key in data if key != "criterion"]:
        head = re.search(rf"""^[\[\s"']*{re.escape(unknown[0])}""", text, re.MULTILINE)
        line = text[: head.end()].count("\n") + 1 if head else 0
        raise refused(file, line, f"unknown key {unknown[0]!r}; accepted: {SHAPE} (YAML: a list under 'criterion')")
    found = data.get("criterion")
    if not isinstance(found, list) or not found:
        what = "no criterion" if not found else f"'criterion' is a {type(found).__name__}"
        raise TaskError(f"{file}: {what}; accepted: {SHAPE} (YAML: a list under 'criterion')")
    tables = tables if len(tables) == len(found) else [Table(values) for values in found]
    for place, (values, table) in enumerate(zip(found, tables, strict=True), 1):
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            what = f"criterion {place} is a {type(values).__name__}; accepted: a table with a name and a kind"
            raise refused(file, table.line, what)
    return [Table(values, table.line, table.lines) for values, table in zip(found, tables, strict=True)]


# --- TOML --------------------------------------------------------------------------------------------


def _of_toml(text: str) -> tuple[Any, list[Table]]:
    return tomllib.loads(text), _toml_lines(text)


def _toml_lines(text: str) -> list[Table]:
    """Where each [[criterion]] and its keys stand: the parser does not tell."""
    tables: list[Table] = []
    current: dict[str, int] | None = None
    inside = ""  # the quotes of a text that spans lines
    for number, line in enumerate(text.split("\n"), 1):
        if inside:
            inside = "" if line.count(inside) % 2 else inside
            continue
        if _TABLE.match(line):
            current = {}
            tables.append(Table({}, number, current))
        elif current is not None and (inner := _INNER.match(line)):
            current.setdefault(inner[1], number)
            current = dict(current)  # what follows belongs to the inner table
        elif _HEADER.match(line):
            current = None
        elif current is not None and (key := _KEY.match(line)):
            current.setdefault(key[1], number)
        inside = next((quotes for quotes in ('"""', "'''") if line.count(quotes) % 2), "")
    return tables


# --- YAML --------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as TOML does."""


_Loader.add_implicit_resolver(*NUMBERS)


def _of_yaml(text: str) -> tuple[Any, list[Table]]:
    for token in yaml.scan(text, Loader=_Loader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
            raise _Misplaced(token.start_mark.line + 1, "anchors and aliases are not accepted in a rubric's file")
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        tables = [_marked(node) for node in _criteria(root)]
        return loader.construct_document(root) if root is not None else None, tables
    finally:
        loader.dispose()


def _criteria(root: Any) -> list[Any]:
    if not isinstance(root, yaml.MappingNode):
        return []
    _keys(root)
    found = [value for key, value in root.value if key.value == "criterion" and isinstance(value, yaml.SequenceNode)]
    return found[0].value if found else []


def _marked(node: Any) -> Table:
    lines = _keys(node) if isinstance(node, yaml.MappingNode) else {}
    return Table({}, node.start_mark.line + 1, lines)


def _keys(node: Any) -> dict[str, int]:
    """The lines of a mapping's keys. Raises _Misplaced where one comes twice: YAML would take the last in silence."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line, name = key.start_mark.line + 1, str(key.value)
        if name in lines:
            raise _Misplaced(line, f"key {name!r} is already in line {lines[name]}; accepted: each key once")
        lines[name] = line
    return lines
