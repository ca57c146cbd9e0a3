"""Plain values and frames on a pipe: all that a generated program and its tests have in common.

A value is rebuilt from JSON as one of Python's own types and nothing else, so that no code of the program runs where
its answers are judged. Knows nothing of who sits at the other end.
"""

from __future__ import annotations

import json
import os
from typing import Any

DEEPEST = 50  # lists within lists; beyond this a value is refused
_HEADER = 8  # bytes of a frame's length
_SMALL = 63  # bits; a larger int travels as hexadecimal, which takes no time to read


class WireError(Exception):
    """What came is no frame, or no value; what was to be sent is no plain value."""


def encode(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON; a subclass of a plain type becomes the plain type. Raises WireError for anything else."""
    if depth > DEEPEST:
        raise WireError(f"nested deeper than {DEEPEST}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() <= _SMALL else {"int": f"{number:x}"}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(v, depth + 1) for v in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(v, depth + 1) for v in value]}
    raise WireError(f"a {type(value).__name__} is no plain value")


def decode(data: Any, depth: int = 0) -> Any:
    """The plain value that ``encode`` made JSON of. Raises WireError for any other JSON."""
    if depth > DEEPEST:
        raise WireError(f"nested deeper than {DEEPEST}")
    if isinstance(data, list):
        return [decode(d, depth + 1) for d in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise WireError("no value")
    ((name, inner),) = data.items()
    try:
        return _tagged(name, inner, depth)
    except (TypeError, ValueError) as error:
        raise WireError(f"no value: {error}") from None


def _tagged(name: str, inner: Any, depth: int) -> Any:
    if name == "int":
        return int(inner, 16)
    if name == "complex":
        real, imaginary = inner
        return complex(float(real), float(imaginary))
    if name == "bytes":
        return bytes.fromhex(inner)
    if name == "dict":
        return {decode(k, depth + 1): decode(v, depth + 1) for k, v in inner}
    kinds = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if name not in kinds or not isinstance(inner, list):
        raise WireError("no value")
    return kinds[name](decode(d, depth + 1) for d in inner)


def send(file: int, data: Any, most: int | None = None) -> None:
    """Writes one frame. Raises WireError for more than ``most`` bytes; OSError where nobody reads."""
    body = json.dumps(data).encode()
    if most is not None and len(body) > most:
        raise WireError(f"more than {most // 1024} KB")
    left = memoryview(len(body).to_bytes(_HEADER, "big") + body)
    while left:
        left = left[os.write(file, left) :]


def receive(file: int, most: int | None = None) -> Any:
    """Reads one frame. Raises EOFError where the other end is closed; WireError for too long a frame or no JSON."""
    length = int.from_bytes(_read(file, _HEADER), "big")
    if most is not None and length > most:
        raise WireError(f"more than {most // 1024} KB")
    try:
        return json.loads(_read(file, length))
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from None


def _read(file: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.read(file, min(length, 1 << 20))
        if not part:
            raise EOFError("the other end is closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
