"""Criterion ``json``: a text is JSON, and follows a schema."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry

from colever.tasks.criteria.fields import LONGEST, read, text_of
from colever.tasks.criteria.pattern import compiled, found
from colever.tasks.criteria.settings import not_empty, refuse, settle
from colever.types import Step

NOTHING = object()  # what no JSON is


def parse(text: str) -> Any:
    """The JSON in a text, as the standard has it (no NaN, no infinite number); ``NOTHING`` where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return NOTHING


@dataclass(frozen=True)
class Json:
    """The share of what is asked of JSON in a field; with ``partial=false`` 1 where all of it holds, else 0.

    Parts: the text parses; each key that ``required`` or the schema names as required is there, with a value that its
    part of the schema allows; the whole follows ``schema`` (a JSON schema of draft 2020-12, as text). A text that does
    not parse is 0. ``fence``: whether the JSON may (``allowed``), must (``required``) or may not (``refused``) stand in
    a block between triple backquotes; around a block text is free. A field that is a list or dict is JSON already.

    Range: [0, 1]. Reads: the field. Cost: none.
    """

    field: str
    schema: str = ""
    required: tuple[str, ...] = ()
    fence: Literal["allowed", "required", "refused"] = "allowed"
    partial: bool = True

    def __post_init__(self) -> None:
        settle(self)
        not_empty(self, "field")
        try:
            checked_schema(self.schema)
        except ValueError as error:
            refuse(self, "schema", f"a JSON schema of draft 2020-12 as text ({error})")

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
        value = self._parsed(read(prediction, steps, self.field))
        if value is NOTHING:
            return 0.0
        held = [True, *self._held(value)]
        share = sum(held) / len(held)
        return share if self.partial or share == 1 else 0.0

    def _parsed(self, value: Any) -> Any:
        if isinstance(value, list | dict):
            try:
                value = json.dumps(value, allow_nan=False)
            except (ValueError, TypeError, RecursionError):
                return NOTHING
            return parse(value) if len(value) <= LONGEST and self.fence != "required" else NOTHING
        text = text_of(value)
        if text is None:
            return NOTHING
        bare = parse(text) if self.fence != "required" else NOTHING
        return bare if bare is not NOTHING or self.fence == "refused" else _of_block(text)

    def _held(self, value: Any) -> Iterator[bool]:
        schema = checked_schema(self.schema)
        named = schema if isinstance(schema, Mapping) else {}
        parts = named.get("properties", {})
        for key in dict.fromkeys([*self.required, *named.get("required", [])]):
            yield (
                isinstance(value, dict)
                and key in value
                and follows(value[key], {**_shared(named), "allOf": [parts.get(key, True)]})
            )
        if self.schema:
            yield follows(value, schema)


def _of_block(text: str) -> Any:
    """The JSON in the one block of a text; ``NOTHING`` where there are none or several."""
    parts = text.split("```")
    if len(parts) != 3:
        return NOTHING
    return parse(parts[1].removeprefix("json").removeprefix("JSON"))


def follows(value: Any, schema: Any) -> bool:
    """Whether JSON follows a schema; False where it is nested too deep to tell."""
    try:
        return _Validator(schema, registry=Registry()).is_valid(value)
    except (RecursionError, ArithmeticError):
        return False


@functools.lru_cache(maxsize=64)
def checked_schema(text: str) -> Any:
    """A schema's text, parsed and tried; "" allows everything. Raises ValueError that says what is wrong with it."""
    if not text:
        return True
    schema = parse(text)
    if schema is NOTHING:
        raise ValueError("it is not JSON")
    try:
        _Validator.check_schema(schema)
        samples: list[Any] = [{}, [], "", 0, None]
        for sample in samples:
            _Validator(schema, registry=Registry()).is_valid(sample)
        _check_parts(schema)
    except SchemaError as error:
        raise ValueError(error.message) from error
    except Exception as error:  # a reference that leads nowhere, or round in a circle
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error
    return schema


def _check_parts(schema: Any) -> None:
    """References lead into the schema itself; patterns are patterns."""
    if isinstance(schema, Mapping):
        for key, part in schema.items():
            if key == "$ref" and isinstance(part, str) and not part.startswith("#"):
                raise ValueError(f"$ref {part!r}: only references into the schema itself (#/…)")
            if key == "pattern" and isinstance(part, str):
                compiled(part)
            if key == "patternProperties" and isinstance(part, Mapping):
                for pattern in part:
                    compiled(pattern)
            _check_parts(part)
    elif isinstance(schema, list):
        for part in schema:
            _check_parts(part)


def _shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a part of a schema may refer to."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not found(pattern, instance):
        yield ValidationError(f"not like {pattern}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    for pattern, part in patterns.items() if isinstance(instance, dict) else ():
        for key, value in instance.items():
            if found(pattern, key):
                yield from validator.descend(value, part, path=key, schema_path=pattern)


def _unique(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Items that differ, told in one pass: jsonschema's own holds each beside each."""
    if unique and isinstance(instance, list):
        keys = {json.dumps(_numbered(item), sort_keys=True) for item in instance}
        if len(keys) < len(instance):
            yield ValidationError("has an item twice")


def _numbered(value: Any) -> Any:
    """1 and 1.0 are one number to a schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_numbered(v) for v in value]
    return {k: _numbered(v) for k, v in value.items()} if isinstance(value, dict) else value


_Validator = validators.extend(
    Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties, "uniqueItems": _unique}
)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is beyond any float")
    return number
