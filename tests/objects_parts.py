"""What every place for objects must do, and the servers to try it on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from colever.objects import Objects, Patient
from colever.s3 import S3Objects

KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret-of-someone", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def moto_server() -> Iterator[str]:
    """An S3 server in this process; its address. Memory alone: it is empty when it starts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client() -> Any:
    """boto3's, by the environment."""
    import boto3

    return boto3.session.Session().client("s3")


def made_bucket(name: str) -> None:
    client().create_bucket(Bucket=name)


class ObjectsConformance:
    """Subclass it with a fixture ``objects``: an empty place."""

    def test_a_content_comes_back(self, objects: Objects, tmp_path: Path) -> None:
        sent, got = tmp_path / "sent", tmp_path / "got"
        sent.write_bytes(os.urandom(3_000_001))
        assert not objects.has("a/b c/é.bin")
        assert not objects.fetch("a/b c/é.bin", got)
        assert not got.exists()
        assert objects.store("a/b c/é.bin", sent)
        assert objects.has("a/b c/é.bin")
        assert objects.fetch("a/b c/é.bin", got)
        assert got.read_bytes() == sent.read_bytes()

    def test_an_empty_content_is_one(self, objects: Objects, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert objects.store("empty", tmp_path / "empty", once=True)
        assert objects.fetch("empty", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == b""

    def test_the_first_stays_where_it_has_to(self, objects: Objects, tmp_path: Path) -> None:
        for text in ("one", "two", "three"):
            (tmp_path / text).write_text(text)
        assert objects.store("name", tmp_path / "one", once=True)
        assert not objects.store("name", tmp_path / "two", once=True)
        objects.fetch("name", tmp_path / "got")
        assert (tmp_path / "got").read_text() == "one"
        assert objects.store("name", tmp_path / "three")
        objects.fetch("name", tmp_path / "got")
        assert (tmp_path / "got").read_text() == "three"

    def test_of_many_at_once_one_is_first(self, objects: Objects, tmp_path: Path) -> None:
        files, won = [tmp_path / f"{place}" for place in range(6)], list[str]()
        for file in files:
            file.write_text(file.name)
        start = threading.Barrier(len(files))

        def send(file: Path) -> None:
            start.wait()
            if objects.store("race", file, once=True):
                won.append(file.name)

        threads = [threading.Thread(target=send, args=(file,)) for file in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        objects.fetch("race", tmp_path / "got")
        assert won == [(tmp_path / "got").read_text()]

    def test_names_are_listed_part_by_part(self, objects: Objects, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("x")
        for name in ("b/study.json", "a/study.json", "a/figures/one.png"):
            objects.store(f"studies/{name}", tmp_path / "x")
        objects.store("rounds/k/record.json", tmp_path / "x")
        assert objects.under("studies/") == ["a", "b"]
        assert objects.under("studies/a/") == ["figures", "study.json"]
        assert objects.under("nothing/") == []


class S3Conformance(ObjectsConformance):
    """On the server that boto3's environment names; ``bucket`` is one that is there."""

    @pytest.fixture
    def objects(self, bucket: str, request: pytest.FixtureRequest) -> Objects:
        return Patient(S3Objects(f"s3://{bucket}/below/{request.node.name}"), patience=2.0)

    def test_a_large_content_is_sent_in_pieces(
        self, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("colever.s3.WHOLE", 6 * 2**20)
        monkeypatch.setattr("colever.s3.PIECE", 5 * 2**20)
        sent, got = tmp_path / "sent", tmp_path / "got"
        sent.write_bytes(os.urandom(13 * 2**20))
        assert objects.store("large", sent, once=True)
        assert not objects.store("large", sent, once=True)
        assert objects.fetch("large", got)
        assert got.read_bytes() == sent.read_bytes()
