"""Rounds in a bucket of a real server, Ceph's gateway: the conformance, refusals, the gateway killed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ceph
import pytest
from objects_parts import KEYS, S3Conformance, client, made_bucket
from test_kill import timeless
from test_store import made

from colever.errors import StoreError
from colever.objects import Patient, open_objects
from colever.optimizers.attribution import report_of
from colever.optimizers.store import RoundStore
from colever.optimizers.study import find_study
from colever.s3 import S3Objects
from colever.tracking.report_json import to_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ceph.installed(), reason="apt-get install radosgw ceph-mon ceph-osd"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph.Ceph]:
    made = ceph.Ceph(tmp_path_factory.mktemp("ceph"))
    try:
        made.user(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
        yield made
    finally:
        made.close()


@pytest.fixture
def s3(cluster: ceph.Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": cluster.address}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: None) -> str:
    name = f"rounds-{uuid.uuid4().hex[:8]}"
    made_bucket(name)
    return name


@pytest.fixture
def shared(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"s3://{bucket}/colever"
    monkeypatch.setenv("COLEVER_OBJECTS", uri)
    open_objects.cache_clear()  # a client keeps the endpoint that it was made with
    yield uri
    open_objects.cache_clear()


class TestCeph(S3Conformance):
    """All that every place for objects does."""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hidden-and-wrong", "the secret key does not fit"),
        ("AWS_ACCESS_KEY_ID", "hidden-and-unknown", "does not know the access key"),
    ],
)
def test_wrong_credentials_are_said_and_not_shown(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    objects = Patient(S3Objects(f"s3://{bucket}/x"))
    with pytest.raises(StoreError, match=said) as refused:
        objects.fetch("a", tmp_path / "a")
    with pytest.raises(StoreError, match="access denied"):  # an answer to HEAD has no code in it
        objects.has("a")
    assert not any(secret in str(refused.value) for secret in ("hidden", KEYS["AWS_SECRET_ACCESS_KEY"]))


def test_a_bucket_that_is_not_there_is_named(s3: None, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(StoreError, match="s3://nobody-made-it: there is no such bucket"):
        S3Objects("s3://nobody-made-it").store("x", tmp_path / "x", once=True)


def test_a_gateway_killed_in_the_middle_of_a_publication(
    cluster: ceph.Ceph, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colever.objects.Patient.store", _dying_with(cluster, "record.json"))
    monkeypatch.setattr("colever.objects.PATIENCE", 2.0)
    open_objects.cache_clear()
    here, there = RoundStore(tmp_path / "here"), RoundStore(tmp_path / "there")
    with pytest.raises(StoreError, match=r"cannot be reached.*kept in the home folder"):
        here.put(made(here))
    cluster.open()
    assert len(open_objects(shared).under("files/")) == 1  # the weights are there, and nobody sees them
    assert there.get("k1") is None
    monkeypatch.undo()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": cluster.address, "COLEVER_OBJECTS": shared}.items():
        monkeypatch.setenv(name, value)
    mine = RoundStore(tmp_path / "here").get("k1")
    theirs = there.get("k1")
    assert mine is not None
    assert theirs is not None
    assert theirs.child.digest == mine.child.digest


def test_a_gateway_that_comes_back_in_time_is_waited_for(cluster: ceph.Ceph, shared: str, tmp_path: Path) -> None:
    here = RoundStore(tmp_path / "here")
    cluster.shut()
    back = threading.Timer(3, cluster.open)
    back.start()
    here.put(made(here))
    back.join()
    assert RoundStore(tmp_path / "there").get("k1") is not None


def test_a_damaged_object_is_named(bucket: str, shared: str, tmp_path: Path) -> None:
    here = RoundStore(tmp_path / "here")
    here.put(made(here))
    (digest,) = open_objects(shared).under("files/")
    client().put_object(Bucket=bucket, Key=f"colever/files/{digest}", Body=b"weights of k0")
    with pytest.raises(StoreError, match=f"{shared}/files/{digest} differs from its checksum"):
        RoundStore(tmp_path / "there").get("k1")


def test_of_many_homes_that_publish_a_round_at_once_all_have_the_first(shared: str, tmp_path: Path) -> None:
    homes = [RoundStore(tmp_path / f"home-{place}") for place in range(4)]
    rounds = []
    for place, store in enumerate(homes):
        record = made(store)
        Path(record.child.weights.path or "", "model.safetensors").write_text(f"weights {place}")
        other = replace(record.child, weights=replace(record.child.weights, digest=f"of {place}"))
        rounds.append(replace(record, child=other))
    start, found = threading.Barrier(len(homes)), dict[int, str]()

    def put(place: int) -> None:
        start.wait()
        found[place] = homes[place].put(rounds[place]).child.weights.digest

    threads = [threading.Thread(target=put, args=(place,)) for place in range(len(homes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = set(found.values())
    assert len(found) == len(homes)
    for store in homes:
        read = store.get("k1")
        assert read is not None
        assert Path(read.child.weights.path or "", "model.safetensors").read_text() == f"weights {first[3:]}"


def test_a_study_whose_gateway_is_killed_goes_on_in_another_home(
    cluster: ceph.Ceph, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLEVER_OBJECTS")
    whole = _finished(_study(tmp_path / "whole"))
    monkeypatch.setenv("COLEVER_OBJECTS", shared)
    process = _study(tmp_path / "one")
    while not open_objects(shared).under("rounds/") and process.poll() is None:
        time.sleep(0.2)
    cluster.shut()
    time.sleep(3)
    cluster.open()  # one that is away for a moment is waited for
    while len(open_objects(shared).under("rounds/")) < 3 and process.poll() is None:
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert timeless(_finished(_study(tmp_path / "two"))) == timeless(whole)
    assert timeless(to_json(report_of(find_study(tmp_path / "empty", "toy")))) == timeless(whole)


def _dying_with(cluster: ceph.Ceph, name: str) -> Any:
    store = Patient.store

    def dying(self: Patient, at: str, file: Path, *, once: bool = False) -> bool:
        if at.endswith(name):
            cluster.shut()
        return store(self, at, file, once=once)

    return dying


def _study(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("toy_study.py")), str(home), "0.2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def _finished(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])
