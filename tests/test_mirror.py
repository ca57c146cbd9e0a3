"""Homes that share their objects: what one has finished the others have, whole, checked, and the first of two stays."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import EVALUATION, made
from test_sweep import run, timeless

from colever.errors import StoreError
from colever.objects import FolderObjects, Patient
from colever.optimizers import mirror
from colever.optimizers.attribution import report_of
from colever.optimizers.comparison import compare
from colever.optimizers.named_rounds import prompts_of
from colever.optimizers.sealed import file_digest, write_sealed
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.optimizers.study import StudyFolder, find_study
from colever.tracking.report_json import to_json


class Cable(FolderObjects):
    """A folder whose connection breaks after so many contents were stored."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.left: float = float("inf")

    def store(self, name: str, file: Path, *, once: bool = False) -> bool:
        if self.left <= 0:
            raise ConnectionError("nobody answers")
        self.left -= 1
        return super().store(name, file, once=once)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv("COLEVER_OBJECTS", str(folder))
    return folder


@pytest.fixture
def cable(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Cable:
    cable = Cable(shared)
    monkeypatch.setattr(mirror, "open_objects", lambda _: Patient(cable, patience=0))
    return cable


def test_a_round_of_one_home_is_a_round_of_another(tmp_path: Path, shared: Path) -> None:
    here, there = RoundStore(tmp_path / "here"), RoundStore(tmp_path / "there")
    assert there.get("k1") is None
    stored = here.put(made(here))
    read = there.get("k1")
    assert read is not None
    assert read.child.digest == stored.child.digest
    assert Path(read.child.weights.path).is_relative_to(tmp_path / "there")
    assert Path(read.child.weights.path, "model.safetensors").read_bytes() == b"weights of k1"
    assert sorted(p.name for p in there.folder.iterdir()) == ["k1"]
    assert read == RoundStore(tmp_path / "there").get("k1")


def test_weights_of_an_earlier_round_come_with_it(tmp_path: Path, shared: Path) -> None:
    here = RoundStore(tmp_path / "here")
    first = here.put(made(here))
    here.put(replace(made(here, "k2"), lever="prompt", parent=first.child, child=first.child))
    read = RoundStore(tmp_path / "there").get("k2")
    assert read is not None
    assert Path(read.child.weights.path, "model.safetensors").read_bytes() == b"weights of k1"


def test_half_a_publication_is_not_seen_and_is_completed_by_the_next_call(
    tmp_path: Path, shared: Path, cable: Cable
) -> None:
    here, there = RoundStore(tmp_path / "here"), RoundStore(tmp_path / "there")
    cable.left = 1  # the weights, and not the record
    with pytest.raises(StoreError, match="kept in the home folder; the next call publishes them"):
        here.put(made(here))
    assert len(list((shared / "files").iterdir())) == 1
    assert there.get("k1") is None
    cable.left = 100
    again = RoundStore(tmp_path / "here")
    mine = again.get("k1")
    assert mine is not None
    assert not again.workdir("k1").exists()
    theirs = there.get("k1")
    assert theirs is not None
    assert theirs.child.digest == mine.child.digest


def test_of_two_that_publish_a_round_the_first_stays(tmp_path: Path, shared: Path) -> None:
    homes = [RoundStore(tmp_path / name) for name in ("one", "two")]
    rounds = [made(store) for store in homes]
    weights = Path(rounds[1].child.weights.path or "", "model.safetensors")
    weights.write_bytes(b"other weights")  # as of another machine's arithmetic
    theirs = replace(rounds[1].child, weights=replace(rounds[1].child.weights, digest="other"))
    first = homes[0].put(rounds[0])
    second = homes[1].put(replace(rounds[1], child=theirs))
    assert second.child.digest == first.child.digest
    for store in homes:
        read = store.get("k1")
        assert read is not None
        assert Path(read.child.weights.path or "", "model.safetensors").read_bytes() == b"weights of k1"


def test_what_was_finished_before_objects_were_shared_is_published_when_it_is_read(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLEVER_OBJECTS", "")
    alone = RoundStore(tmp_path / "here")
    alone.put(made(alone))
    EvaluationStore(tmp_path / "here").put("e", EVALUATION)
    monkeypatch.setenv("COLEVER_OBJECTS", str(shared))
    assert RoundStore(tmp_path / "here").get("k1") is not None
    assert EvaluationStore(tmp_path / "here").get("e") == EVALUATION
    assert RoundStore(tmp_path / "there").get("k1") is not None
    assert EvaluationStore(tmp_path / "there").get("e") == EVALUATION


@pytest.mark.parametrize("damage", ["weights", "gone", "record", "cut"])
def test_a_damaged_object_is_named_and_nothing_is_left_of_it(tmp_path: Path, shared: Path, damage: str) -> None:
    here, there = RoundStore(tmp_path / "here"), RoundStore(tmp_path / "there")
    here.put(made(here))
    record, (file,) = shared / "rounds" / "k1" / "record.json", (shared / "files").iterdir()
    if damage == "weights":
        file.write_bytes(b"weights of k0")
    elif damage == "gone":
        file.unlink()
    elif damage == "record":
        data = json.loads(record.read_text())
        data["value"]["record"]["accepted"] = False
        record.write_text(json.dumps(data))
    else:
        record.write_text(record.read_text()[:100])
    with pytest.raises(StoreError, match="checksum" if damage != "gone" else "is gone") as caught:
        there.get("k1")
    assert str(file if damage in ("weights", "gone") else record) in str(caught.value)
    assert "Delete" in str(caught.value)
    assert list(there.folder.iterdir()) == []


def test_a_damaged_evaluation_is_named(tmp_path: Path, shared: Path) -> None:
    EvaluationStore(tmp_path / "here").put("e", EVALUATION)
    path = shared / "evaluations" / "e.json"
    path.write_text(path.read_text().replace("3.5", "4.5"))
    with pytest.raises(StoreError, match="checksum"):
        EvaluationStore(tmp_path / "there").get("e")
    assert not (tmp_path / "there" / "evaluations" / "e.json").exists()


def test_a_record_leads_out_of_no_home(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "x").write_text("x")
    FolderObjects(shared).store(f"files/{file_digest(tmp_path / 'x')}", tmp_path / "x")
    for name in ("../../out", "/tmp/out", "record.json"):
        files = {name: file_digest(tmp_path / "x")}
        write_sealed(shared / "rounds" / "k1" / "record.json", {"record": {}, "files": files})
        with pytest.raises(StoreError, match="outside its round"):
            RoundStore(tmp_path / "there").get("k1")
    assert not (tmp_path / "out").exists()


def test_a_study_is_reported_compared_and_shown_from_an_empty_home(tmp_path: Path, shared: Path) -> None:
    report = run(tmp_path / "here", trials=2)
    empty = tmp_path / "empty"
    name = StudyFolder(tmp_path / "here", report.study).name
    assert find_study(empty, "toy").name == name
    assert timeless(to_json(report_of(find_study(empty, name)))) == timeless(to_json(report))
    assert compare(empty, []) == compare(tmp_path / "here", [])
    shown, base = prompts_of(find_study(empty, name), "winner", "base")
    assert shown != base
    assert find_study(empty, name).manifest() == find_study(tmp_path / "here", name).manifest()
    assert find_study(empty, name).file("config.yaml").exists()


def test_a_study_goes_on_in_another_home_without_running_a_round_again(tmp_path: Path, shared: Path) -> None:
    updates: list[str] = []
    first = run(tmp_path / "one", trials=3, on_update=lambda: updates.append("one"))
    second = run(tmp_path / "two", trials=3, on_update=lambda: updates.append("two"))
    assert "two" not in updates
    assert timeless(to_json(second)) == timeless(to_json(first))


def test_a_study_whose_server_went_away_goes_on_when_it_is_back(tmp_path: Path, shared: Path, cable: Cable) -> None:
    updates: list[str] = []
    whole = run(tmp_path / "whole", trials=2, on_update=lambda: updates.append("whole"))
    for path in sorted(shared.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for left in (4, 10):
        cable.left = left
        with pytest.raises(StoreError, match=re.escape(str(shared))):
            run(tmp_path / "cut", trials=2, on_update=lambda: updates.append("cut"))
    cable.left = float("inf")
    last = run(tmp_path / "cut", trials=2, on_update=lambda: updates.append("cut"))
    assert timeless(to_json(last)) == timeless(to_json(whole))
    assert updates.count("cut") == updates.count("whole")
    assert timeless(to_json(report_of(find_study(tmp_path / "empty", "toy")))) == timeless(to_json(whole))
