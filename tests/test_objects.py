"""Shared objects: whole or not there, the first one stays, a place that is away is waited for, refusals are named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from objects_parts import KEYS, ObjectsConformance, S3Conformance, made_bucket, moto_server

from colever.errors import StoreError, UsageError
from colever.objects import FolderObjects, Objects, Patient, open_objects
from colever.s3 import S3Objects


class TestFolder(ObjectsConformance):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        (tmp_path / "shared").mkdir()
        return Patient(FolderObjects(tmp_path / "shared"))

    def test_nothing_half_written_is_left(self, objects: Objects, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("x")
        objects.store("a/x", tmp_path / "x")
        objects.store("a/x", tmp_path / "x", once=True)
        with pytest.raises(StoreError):
            objects.store("a/y", tmp_path / "not-there")
        assert [p.name for p in (tmp_path / "shared" / "a").iterdir()] == ["x"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("moto")
    with moto_server() as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's environment."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)


class TestS3(S3Conformance):
    @pytest.fixture
    def bucket(self, s3: None) -> str:
        made_bucket("rounds-of-all")
        return "rounds-of-all"


def test_what_is_no_place_is_refused() -> None:
    for uri in ("gs://bucket", "file://elsewhere/x", "s3://"):
        with pytest.raises(UsageError, match="accepted"):
            open_objects(uri)


def test_credentials_in_an_address_are_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as refused:
        open_objects("s3://me:hidden@bucket/x")
    assert "hidden" not in str(refused.value)


def test_a_folder_may_be_named_by_a_url(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "x").write_text("x")
    assert open_objects(f"file://{tmp_path}/a%20b").store("x", tmp_path / "x")
    assert (tmp_path / "a b" / "x").read_text() == "x"


def test_a_folder_that_is_not_mounted_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        open_objects(str(tmp_path / "gone")).has("x")
    assert not (tmp_path / "gone").exists()


def test_a_bucket_that_is_not_there_is_named(s3: None, tmp_path: Path) -> None:
    objects = Patient(S3Objects("s3://nobody-made-it/x"))
    (tmp_path / "x").write_text("x")
    for call in (lambda: objects.fetch("a", tmp_path / "y"), lambda: objects.store("a", tmp_path / "x", once=True)):
        with pytest.raises(StoreError, match="s3://nobody-made-it/x: there is no such bucket"):
            call()


def test_a_server_that_stays_away_is_waited_for_and_named(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told: list[str] = []
    objects = Patient(S3Objects("s3://bucket/x"), told.append, patience=1.0)
    with pytest.raises(StoreError, match=r"s3://bucket/x cannot be reached.*Finished rounds are kept") as away:
        objects.fetch("a", tmp_path / "a")
    assert "trying again" in told[0]
    assert not any(secret in str(away.value) + "".join(told) for secret in KEYS.values() if secret != "us-east-1")


def test_a_place_that_comes_back_is_gone_on_with(tmp_path: Path) -> None:
    class Coming(FolderObjects):
        away = 2

        def has(self, name: str) -> bool:
            if self.away:
                self.away -= 1
                raise ConnectionError("not yet")
            return super().has(name)

    assert not Patient(Coming(tmp_path)).has("x")


def test_a_long_transfer_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    said = threading.Event()
    told: list[str] = []

    class Slow(FolderObjects):
        def store(self, name: str, file: Path, *, once: bool = False) -> bool:
            assert said.wait(30)
            return super().store(name, file, once=once)

    def tell(line: str) -> None:
        told.append(line)
        said.set()

    monkeypatch.setattr("colever.objects.TOLD_AFTER", 0.01)
    (tmp_path / "x").write_bytes(bytes(1_500_000))
    Patient(Slow(tmp_path), tell).store("weights", tmp_path / "x")
    assert told[0] == f"sending weights to {tmp_path}: 1.5 MB"


def test_no_boto3_is_a_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="boto3 is not installed; accepted: pip install"):
        S3Objects("s3://bucket").has("x")


def test_no_credentials_are_said(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="there are no credentials"):
        S3Objects("s3://bucket").has("x")
