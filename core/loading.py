"""From a file, flags and ``--set`` to one checked configuration, and errors that name what stands where.

Knows YAML and the command line's spellings; what a setting is stands in ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from colever.config import SweepConfig
from colever.errors import UsageError


def parse_pairs(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """``["a.b=1"]`` → {"a.b": 1}, values as YAML. Raises UsageError naming the flag.

    ``1e-4`` stays text here, as YAML 1.1 has it; the settings make a number of it.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"{flag} {pair!r}: accepted: KEY=VALUE")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"{flag} {pair!r}: the value is not YAML: {error}") from error
    return values


def load_config(
    file: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SweepConfig:
    """A study's configuration: the YAML file, then flags that are not None, then dotted overrides.

    Raises UsageError that names the file (or the flag) and the key.
    """
    data: dict[str, Any] = _read_yaml(file) if file is not None else {}
    _build(data, f"{file}" if file is not None else "configuration", partial=True)
    data.update({key: value for key, value in (flags or {}).items() if value is not None})
    for dotted, value in (overrides or {}).items():
        _put(data, dotted.split("."), value, dotted)
    return _build(data, "configuration" if file is None else f"{file} with flags")


def _build(data: Mapping[str, Any], where: str, *, partial: bool = False) -> SweepConfig:
    try:
        return SweepConfig(**({"task": "?"} | dict(data) if partial else data))
    except ValidationError as error:
        lines = [_reason(e) for e in error.errors() if e["loc"] or not partial]  # flags may mend what goes together
        if not lines:
            return SweepConfig(task="?")
        raise UsageError(f"{where}: {'; '.join(lines)}") from None


def _reason(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # our own checks name their key
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; accepted here: {', '.join(_accepted(error['loc'][:-1]))}"
    said = error["msg"].replace("a valid tuple", "a list, such as [p, w]" if key == "schedules" else "a list")
    return f"{key}: is needed" if error["type"] == "missing" else f"{key}: {said}, got {error['input']!r}"


def _accepted(path: Sequence[Any]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in path:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return sorted(model.model_fields)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{file}: accepted: a mapping of settings, such as 'trials: 8'")
    _check_keys(data, file, ())
    return data


def _check_keys(value: Any, file: Path, above: tuple[int, ...]) -> None:
    """Raises UsageError for a key that is no text and for an alias of what it is part of."""
    if id(value) in above:
        raise UsageError(f"{file}: an alias (*name) stands inside what it names; accepted: aliases of other settings")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise UsageError(f"{file}: key {key!r} is no text; accepted: names of settings, such as 'trials: 8'")
    for part in inside:
        _check_keys(part, file, (*above, id(value)))


def _put(data: dict[str, Any], path: Sequence[str], value: Any, dotted: str) -> None:
    if not all(path):
        raise UsageError(f"--set {dotted}: a part of the name is empty; accepted: such as weights.learning_rate")
    for part in path[:-1]:
        inner = data.get(part)
        data[part] = dict(inner) if isinstance(inner, dict) else {}
        data = data[part]
    data[path[-1]] = value
