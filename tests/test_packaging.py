"""What pyproject.toml says: bounds on both sides, since what is above is untried, and no leftovers in the package."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_requirement_has_both_bounds() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in [*PROJECT["project"]["dependencies"], *(line for lines in extras for line in lines)]:
        signs = {s.operator for s in Requirement(line).specifier}
        assert signs & {">=", "=="}, line
        assert signs & {"<", "<=", "=="}, line


def test_an_interrupted_builds_state_is_no_package_data() -> None:
    from colever.engines.seed.build import STATE

    excluded = PROJECT["tool"]["setuptools"]["exclude-package-data"]["colever.engines.seed"]
    assert any(fnmatch(f"checkpoint/{STATE}", pattern) for pattern in excluded)
