"""Rows of a published data set: from a file that the user has, or from the hub; and how they are cut into splits.

Knows files and hub names; knows nothing of what a task makes of a row.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import dspy

from colever.errors import TaskError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
Row = Mapping[str, Any]
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Source:
    """Where a task's rows come from: the hub's name (and configuration) of the data set, and the fields of a row.

    ``spellings`` are further names that a field has in some copies; ``published`` maps the SHA-256 of files that are
    known to what they are. ``whole``: the hub has train rows alone, of which all three splits are parts.
    """

    hub: str
    fields: tuple[str, ...]
    config: str | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)  # name in the copy -> the field
    published: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def wanted(self) -> str:
        """What a file has to be, in words."""
        return f"a file ({', '.join(KINDS)}, or gzipped) with the fields {', '.join(self.fields)} (of {self.hub})"

    def own(self, row: Row) -> dict[str, Any]:
        """A copy's row under this source's names."""
        return {self.spellings.get(name, name): value for name, value in row.items()}


@dataclass(frozen=True)
class Rows:
    """The rows of one file or hub split, and what they are: ``origin`` is a line with the file's SHA-256."""

    rows: tuple[dict[str, Any], ...]
    origin: str


def read_rows(source: Source, data: Path | str | None, split: str = "train") -> Rows:
    """The rows of ``data`` (a file, or a folder with ``<split>.jsonl``), or of the hub's ``split`` where it is None.

    Raises TaskError that names the file, row and field at fault, or says what to give where there is no data.
    """
    return _from_hub(source, split) if data is None else _from_file(source, _found(source, Path(data), split))


def read_splits(
    source: Source,
    data: Path | str | None,
    sizes: tuple[int, int, int],
    make: Callable[[Row], dspy.Example],
    *,
    seed: int,
    keep: Callable[[Sequence[Row]], Callable[[Row], bool]] = lambda train: lambda row: True,
) -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example], str]:
    """Train, dev and test of these sizes, drawn by ``seed``, each row through ``make``; and where they are from.

    Test is drawn from the hub's or the folder's own test rows; of a single file all three are distinct parts. ``keep``
    makes a filter out of the train rows. A row whose first field has been seen before is left out. Of fewer rows than
    ``sizes`` add up to the splits are smaller, in proportion. Raises TaskError as ``read_rows``.
    """
    apart = not source.whole if data is None else Path(data).is_dir()
    learnt = read_rows(source, data)
    held = read_rows(source, data, "test") if apart else Rows((), "")
    kept, seen = keep(learnt.rows), set[str]()
    first, second = (_distinct(source, filter(kept, found.rows), seen) for found in (learnt, held))
    parts = [*drawn(first, sizes[:2], seed), *drawn(second, sizes[2:], seed)] if apart else drawn(first, sizes, seed)
    train, dev, test = (list(map(make, rows)) for rows in parts)
    return train, dev, test, "; ".join(filter(None, [learnt.origin, held.origin]))


def _distinct(source: Source, rows: Iterable[dict[str, Any]], seen: set[str]) -> list[Row]:
    found: list[Row] = []
    for row in rows:
        asked = str(row[source.fields[0]]).strip()
        if asked not in seen:
            seen.add(asked)
            found.append(row)
    return found


def drawn(rows: Sequence[Drawn], sizes: Sequence[int], seed: int) -> list[list[Drawn]]:
    """The rows cut by ``seed`` into parts of these sizes; of too few rows into smaller ones, in proportion."""
    whole = sum(sizes)
    if len(rows) < whole:
        sizes = [size * len(rows) // whole for size in sizes]
    order, parts = list(rows), list[list[Drawn]]()
    Random(seed).shuffle(order)
    for size in sizes:
        parts.append(order[:size])
        order = order[size:]
    return parts


def _found(source: Source, path: Path, split: str) -> Path:
    if path.is_dir():
        names = [f"{split}{kind}{packed}" for kind in KINDS for packed in ("", ".gz")]
        for name in names:
            if (path / name).is_file():
                return path / name
        raise TaskError(f"--data {path}: the folder has no {split}.jsonl; accepted in it: {', '.join(names[::2])}")
    if not path.is_file():
        raise TaskError(f"--data {path}: no such file; accepted: {source.wanted}")
    return path


def _from_file(source: Source, path: Path) -> Rows:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise TaskError(f"--data {path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(packed).hexdigest()
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
        rows = tuple(_checked(source, f"--data {path}", _parsed(path, kind, content)))
    except (UnicodeDecodeError, EOFError, OSError) as error:
        raise TaskError(f"--data {path}: not {kind} as UTF-8: {error}") from error
    if not rows:
        raise TaskError(f"--data {path}: no row in it; accepted: {source.wanted}")
    known = source.published.get(digest)
    return Rows(rows, f"{path.name}, sha256 {digest[:16]}, {known or f'not a published file of {source.hub}'}")


def _parsed(path: Path, kind: str, content: bytes) -> Iterator[tuple[str, Any]]:
    """(where it stands, row), unchecked."""
    if kind == ".jsonl":
        for number, line in enumerate(content.decode().split("\n"), 1):
            if line.strip():
                yield f"line {number}", _json(path, f"line {number}", line)
    elif kind == ".json":
        found = _json(path, "the file", content.decode())
        if not isinstance(found, list):
            raise TaskError(f"--data {path}: a {type(found).__name__}; accepted: a list of rows")
        yield from ((f"row {number}", row) for number, row in enumerate(found, 1))
    elif kind == ".csv":
        csv.field_size_limit(sys.maxsize)
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        yield from ((f"row {number}", row) for number, row in enumerate(reader, 1))
    elif kind == ".parquet":
        yield from _parquet(path, content)
    else:
        raise TaskError(f"--data {path}: {path.suffix or 'no ending'} is not known; accepted: {', '.join(KINDS)}")


def _json(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(f"--data {path}: {where} is not JSON: {error}") from error


def _parquet(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise TaskError(f"--data {path}: not a parquet file: {error}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _checked(source: Source, what: str, rows: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise TaskError(f"{what}: {where} is a {type(row).__name__}; accepted: fields {source.fields}")
        own = source.own(row)
        for name in source.fields:
            if own.get(name) is None:
                raise TaskError(
                    f"{what}: {where} has no {name!r}; its fields are {', '.join(map(str, row)) or 'none'}; "
                    f"accepted: {source.wanted}"
                )
        yield {name: own[name] for name in source.fields}


def _from_hub(source: Source, split: str) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(source.hub, source.config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(
            f"{source.hub} cannot be loaded from the hub ({said}); give --data PATH: {source.wanted}"
        ) from error
    rows = tuple(_checked(source, f"{source.hub} on the hub", ((f"row {n}", row) for n, row in enumerate(loaded, 1))))
    return Rows(rows, f"{source.hub}, {split}, fingerprint {loaded._fingerprint}")
