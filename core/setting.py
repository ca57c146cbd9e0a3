"""What all groups of settings are made of: frozen, strict about their keys, each with a line that says what it is.

Knows pydantic and YAML's habits; no setting.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Settings(BaseModel):
    """Frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML 1.1 reads 1e2 as text, and on and off as booleans: here they are what the field takes."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and get_origin(kind) is Literal:
            return "on" if value else "off"
        numeric = kind in (int, float) and isinstance(value, str) and _EXPONENT.fullmatch(value)
        return float(value) if numeric else value


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field that says what it is: docs/settings.md is made of these lines."""
    return Field(default=default, description=description, **bounds)
