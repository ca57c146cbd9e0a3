"""What doctor says: every package that Colever needs, its bounds, and a home that can be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from standin_vllm import VERSION, shim

from colever import doctor
from colever.tasks.sandbox import host


def test_every_needed_package_is_looked_at() -> None:
    found = {f.what: f for f in doctor._packages()}
    assert {"datasets", "accelerate", "safetensors", "scipy", "torch", "trl"} <= set(found)
    assert "pytest" not in found  # an extra
    assert all(f.ok for f in found.values()), [f for f in found.values() if not f.ok]


@pytest.mark.parametrize(
    ("requirement", "ok", "said"),
    [
        ("pytest>=8", True, r"\d+\..*"),
        ("pytest>=8,<8.1", False, r"\d+\..*; accepted: <8.1,>=8"),
        ("no-such-package<2", False, "not installed; accepted: <2"),
        ("no-such-package", False, "not installed; accepted: any version"),
    ],
)
def test_a_version_out_of_bounds_is_bad(requirement: str, ok: bool, said: str) -> None:
    found = doctor._package(Requirement(requirement))
    assert found.ok is ok
    assert re.fullmatch(said, found.detail)


def test_an_extra_is_never_bad() -> None:
    assert doctor._extra("no-such-package", "nothing", None).ok is None
    wrong = doctor._extra("pytest", "tests", Requirement("pytest<1"))
    assert (wrong.ok, wrong.detail.endswith("; accepted: <1 (for tests)")) == (None, True)


def test_stores_that_a_home_shares_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLEVER_DATABASE", "")
    monkeypatch.setenv("COLEVER_MLFLOW", "")
    monkeypatch.setenv("COLEVER_OBJECTS", "")
    assert doctor._stores(tmp_path) == []
    monkeypatch.setenv("COLEVER_DATABASE", f"sqlite:///{tmp_path / 'shared.db'}")
    monkeypatch.setenv("COLEVER_MLFLOW", "http://127.0.0.1:9")
    monkeypatch.setenv("COLEVER_OBJECTS", str(tmp_path))
    database, mlflow, objects = doctor._stores(tmp_path)
    assert (database.ok, mlflow.ok, objects.ok) == (True, False, True)
    assert "http://127.0.0.1:9 does not answer" in mlflow.detail
    monkeypatch.setenv("COLEVER_OBJECTS", str(tmp_path / "not-mounted"))
    assert "there is no such folder" in doctor._stores(tmp_path)[-1].detail


def test_the_vllm_that_would_be_started_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLEVER_VLLM_PYTHON", shim(tmp_path))
    (found,) = doctor._vllm()
    assert (found.ok, found.detail) == (True, f"{VERSION} in {tmp_path / 'python-with-vllm'}")
    shim(tmp_path, STANDIN_VERSION="")
    (found,) = doctor._vllm()
    assert found.ok is None
    assert "has no vLLM; accepted: engine.vllm_python, or COLEVER_VLLM_PYTHON" in found.detail


def test_a_home_that_is_a_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        (found,) = doctor._home(home)
        assert (found.ok, found.detail) == (
            False, f"{tmp_path / 'file'} is a file; accepted: a folder, or a place where one can be made"
        )  # fmt: skip
    assert doctor._home(tmp_path / "new" / "one")[0].ok


def test_the_sandbox_of_this_machine_is_told(monkeypatch) -> None:
    (found,) = doctor._sandbox()
    assert found.what == "sandbox"
    assert found.detail.split(":")[0].split(" ")[0] in (*host.LEVELS, "none")
    monkeypatch.setattr(host, "_found", [host.Found("limits", {"namespaces": "no unshare", "landlock": "ABI 0"})])
    (found,) = doctor._sandbox()
    assert (found.ok, "isolation=best" in found.detail, "no unshare" in found.detail) == (None, True, True)
    monkeypatch.setattr(host, "_found", [host.Found(None, {"limits": "no fork"})])
    assert doctor._sandbox() == [doctor.Finding("sandbox", None, "none (limits: no fork)")]
