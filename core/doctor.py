"""What this machine and installation can do. Reads versions, devices and folders; changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from colever.database import Database

EXTRAS = {
    "bitsandbytes": "engine.quantization=nf4",
    "ray": "--on ray",
    "playwright": "browser tests",
    "psycopg": "--database",
    "boto3": "--objects s3://…",
}


@dataclass(frozen=True)
class Finding:
    """One line: ``ok`` is None where something optional is absent."""

    what: str
    ok: bool | None
    detail: str


def examine(home: Path) -> list[Finding]:
    """Every check, in the order shown; a check that fails becomes a finding."""
    findings: list[Finding] = []
    checks: tuple[Callable[[], list[Finding]], ...] = (_python, _packages, _machine, _devices, _seed, _sandbox)
    for check in (*checks, lambda: _home(home), lambda: _stores(home), _vllm, _extras, _keys):
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - doctor's boundary: a broken installation is what it reports
            findings.append(Finding(check.__name__.strip("_"), False, f"{type(error).__name__}: {error}"))
    return findings


def _python() -> list[Finding]:
    found = sys.version_info[:2]
    return [Finding("Python", (3, 11) <= found <= (3, 14), f"{platform.python_version()} (3.11 to 3.14 are supported)")]


def _packages() -> list[Finding]:
    """What Colever's own package says it needs, and within which bounds."""
    needed = (Requirement(line) for line in requires("colever") or ())
    return [_package(r) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]


def _package(requirement: Requirement) -> Finding:
    number, accepted = _version(requirement.name), f"accepted: {requirement.specifier or 'any version'}"
    if number is None:
        return Finding(requirement.name, False, f"not installed; {accepted}")
    fits = requirement.specifier.contains(number, prereleases=True)
    return Finding(requirement.name, fits, number if fits else f"{number}; {accepted}")


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings = [Finding("CPU cores", True, str(cores))]
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 2:
        advice = "times will be longer, and OMP_NUM_THREADS=1 loses less than threads that wait for one another"
        findings.append(Finding("load", None, f"{load:.1f}: other work is running; {advice}"))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        findings.append(Finding("memory", gib >= 3, f"{gib:.1f} GiB"))
    return findings


def _devices() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [Finding("GPU", True, ", ".join(names))]
    return [Finding("GPU", None, f"none: the CPU is used, {torch.get_num_threads()} threads")]


def _seed() -> list[Finding]:
    from colever.engines.lm import seed_path

    path = seed_path()
    there = (path / "config.json").is_file() and (path / "model.safetensors").is_file()
    return [Finding("seed model", there, str(path) if there else "not built: run `colever seed build`")]


def _sandbox() -> list[Finding]:
    """How generated programs are walled off here; limits alone are refused unless a criterion says ``best``."""
    from colever.tasks.sandbox.host import WALLS, available

    found = available()
    why = "; ".join(f"{level}: {reason}" for level, reason in found.missing.items())
    if found.level is None:
        return [Finding("sandbox", None, f"none ({why})")]
    detail = WALLS[found.level] + (f" ({why})" if why else "")
    return [Finding("sandbox", True if found.level != "limits" else None, f"{found.level}: {detail}")]


def _home(home: Path) -> list[Finding]:
    folder = home.resolve()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir():
        return [Finding("home", False, f"{parent} is a file; accepted: a folder, or a place where one can be made")]
    studies = len(list((folder / "studies").glob("*/study.json")))
    writable = os.access(parent, os.W_OK)
    return [Finding("home", writable, f"{folder}: {studies} studies" if writable else f"{folder} cannot be written")]


def _stores(home: Path) -> list[Finding]:
    """Whether what the home shares with other machines answers; nothing of a home that shares nothing."""
    from colever.stores import stores_of

    stores, findings = stores_of(home), []
    if stores.database:
        from colever.database import Database

        database = Database(stores.database, patience=0.0)
        findings.append(_answering("database", database.shown, lambda: database.waited(_connected(database))))
    if stores.mlflow:
        from colever.tracking.server import await_server

        findings.append(_answering("MLflow", stores.mlflow, lambda: await_server(stores.mlflow, 0.0)))
    if stores.objects:
        from colever.objects import open_objects

        asked = open_objects(stores.objects, 0.0)
        findings.append(_answering("objects", stores.objects, lambda: asked.under("studies/")))
    return findings


def _connected(database: Database) -> Callable[[], None]:
    return lambda: database.engine.connect().close()


def _answering(what: str, address: str, ask: Callable[[], object]) -> Finding:
    from colever.errors import ColeverError

    try:
        ask()
    except ColeverError as error:
        return Finding(what, False, str(error))
    return Finding(what, True, address)


def _vllm() -> list[Finding]:
    """Whether ``--engine vllm`` finds a server to start. Nothing is imported: the python is asked what it has."""
    from colever.engines.vllm_server import default_python, vllm_version_in
    from colever.errors import UsageError

    try:
        return [Finding("vllm", True, f"{vllm_version_in(default_python())} in {default_python()}")]
    except UsageError as error:
        return [Finding("vllm", None, f"{error} (for --engine vllm)")]


def _extras() -> list[Finding]:
    bounds = {r.name: r for r in map(Requirement, requires("colever") or ())}
    return [_extra(name, what_for, bounds.get(name)) for name, what_for in EXTRAS.items()]


def _extra(name: str, what_for: str, requirement: Requirement | None) -> Finding:
    """Never bad: what is optional is not needed, in whatever version."""
    found = _package(requirement or Requirement(name))
    return Finding(name, True, found.detail) if found.ok else Finding(name, None, f"{found.detail} (for {what_for})")


def _keys() -> list[Finding]:
    """Which keys of APIs are set, by their names."""
    found = sorted(name for name, value in os.environ.items() if name.endswith("_API_KEY") and value)
    return [Finding("API keys", True if found else None, ", ".join(found) or "none set (for --model api:…)")]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
