"""Files of somebody else, read without believing them: which there are, JSON, safetensors. Runs and unpickles nothing.

Each function raises StoreError that names the file. Links are not followed. Sizes are bounded before anything is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from colever.errors import StoreError

MOST = {".json": 64 << 20, ".html": 64 << 20, ".yaml": 256 << 10, ".py": 4 << 20, ".safetensors": 1 << 40}  # bytes
MOST_HEADER = 16 << 20  # of a safetensors file
MOST_FILES = 2001
DEEPEST = 64  # lists and objects inside one another
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def files_in(folder: Path) -> dict[str, int]:
    """Path → bytes of every file below ``folder``, which holds files and folders alone."""
    found: dict[str, int] = {}
    for entry, path in _walk(folder, ""):
        mode = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(mode.st_mode):
            raise StoreError(f"{folder / path} is a link or something else than a file or a folder")
        found[path] = mode.st_size
        if len(found) > MOST_FILES:
            raise StoreError(f"{folder} holds more than {MOST_FILES:,} files")
    return found


def _walk(folder: Path, above: str, depth: int = 0) -> Iterator[tuple[os.DirEntry[str], str]]:
    if depth > 8:
        raise StoreError(f"{folder} has folders more than 8 deep")
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{above}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(folder / entry.name, f"{path}/", depth + 1)
                else:
                    yield entry, path
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}") from error


def read_bytes(file: Path, most: int | None = None) -> bytes:
    """The file's bytes, at most ``most`` (what its kind may have)."""
    most = MOST.get(file.suffix, 0) if most is None else most
    try:
        with _opened(file) as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise StoreError(f"{file} has more than {most:,} bytes")
    return content


def sha256_of(*files: Path) -> str:
    """Of the files' content, one behind the other."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with _opened(file) as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_json(file: Path) -> Any:
    """See ``parse_json``; raises StoreError that names the file."""
    try:
        return parse_json(read_bytes(file))
    except ValueError as error:
        raise StoreError(f"{file}: {error}") from None


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8, each key once, numbers that are finite, nested at most ``DEEPEST``. Raises ValueError."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", content)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} deep")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None


def check_safetensors(file: Path) -> None:
    """Raises StoreError unless header and size are those of safetensors: nothing is loaded."""
    size = file.stat().st_size
    start = _first_bytes(file, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MOST_HEADER, size - 8):
        raise StoreError(f"{file} is no safetensors file: its header would have {length:,} bytes of {size:,}")
    try:
        header = parse_json(_first_bytes(file, 8 + length)[8:])
        end = _end(header)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{file} is no safetensors file: its header {error}") from None
    if end != size - 8 - length:
        raise StoreError(f"{file}: its header tells of {end:,} bytes, and there are {size - 8 - length:,}")


def _end(header: Any) -> int:
    """Where the tensors end, which must lie one behind the other."""
    if not isinstance(header, dict):
        raise ValueError("is not an object")
    places = []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        first, last = tensor["data_offsets"]
        bits, shape = _BITS[tensor["dtype"]], tensor["shape"]
        if not all(type(n) is int and n >= 0 for n in [first, last, *shape]) or len(shape) > 8:
            raise ValueError(f"has a tensor {name[:80]!r} with an odd shape or place")
        if 8 * (last - first) != bits * math.prod(shape):
            raise ValueError(f"has a tensor {name[:80]!r} whose shape and bytes differ")
        places.append((first, last))
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError("leaves gaps between tensors, or lays one over another")
        end = last
    return end


def _first_bytes(file: Path, count: int) -> bytes:
    try:
        with _opened(file) as opened:
            return opened.read(count)
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror or error}") from error


def _opened(file: Path) -> BinaryIO:
    """No link: that nobody puts one in the place of what was looked at."""
    return open(os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
