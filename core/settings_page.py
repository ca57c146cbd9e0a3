"""docs/settings.md, made of the config classes: name, default, accepted values and description of every setting.

Knows the classes and Markdown; nothing of what a setting does. Written anew by:

    python -m colever.settings_page docs/settings.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from colever.config import CAPS, Settings, SweepConfig

_HEAD = f"""# Settings

Made from `core/config.py` by `python -m colever.settings_page docs/settings.md`; a test compares the two.

Any of them is given as `--set NAME=VALUE` (`--set weights.learning_rate=1e-4`), or in a YAML file with `--config FILE`,
where flags win over the file. A name that is not listed is refused. A study keeps what it ran with as `config.yaml`.

Caps in `budget` and `round_budget`: {", ".join(f"`{cap}`" for cap in CAPS)}.
"""
_WORDS: dict[Any, str] = {str: "text", dict: "a mapping", tuple: "a list", list: "a list", bool: "true, false"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole page, with a newline at its end."""
    return "\n".join([_HEAD, *_section("Study", "", SweepConfig)])


def _section(title: str, prefix: str, settings: type[Settings]) -> Iterator[str]:
    """A heading and a table, then the groups of settings inside it."""
    inner = {name: kind for name, f in settings.model_fields.items() if (kind := _group(f)) is not None}
    yield f"## {title}\n\n{(settings.__doc__ or '').splitlines()[0].replace('``', '`')}\n"
    yield "| setting | default | accepted | what it is |\n|---|---|---|---|"
    for name, field in settings.model_fields.items():
        if name not in inner:
            default, accepted = _default(field), _accepted(field.annotation, field.metadata)
            yield f"| `{prefix}{name}` | {default} | {accepted} | {field.description} |"
    yield ""
    for name, kind in inner.items():
        yield from _section(f"`{prefix}{name}`", f"{prefix}{name}.", kind)


def _group(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "is needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {}:
        return "unset"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _accepted(kind: Any, bounds: Sequence[Any]) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if origin in (UnionType, Union):
        return " or ".join(_accepted(part, bounds) for part in get_args(kind) if part is not type(None))
    if kind in (int, float):
        limits = [f"{sign} {getattr(b, name):g}" for name, sign in _SIGNS.items() for b in bounds if hasattr(b, name)]
        return " ".join(["a whole number" if kind is int else "a number", ", ".join(limits)]).strip()
    return _WORDS[origin or kind]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
