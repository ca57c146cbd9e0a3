"""Stored rounds: whole or absent, checked on reading, moved with their home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from colever.errors import StoreError
from colever.optimizers.sealed import read_sealed, write_sealed
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.process import is_left, machine, mark
from colever.types import Candidate, Cost, Evaluation, PredictorPrompt, RoundRecord, Weights

EVALUATION = Evaluation(
    "dev", ("a", "b"), (1.0, None), (1.0, None), {"right": 1.0}, {"solve": 3.5}, cost=Cost(rollouts=2)
)
PARENT = Candidate({"solve": PredictorPrompt("Say.", ({"q": "1", "a": "é"},))})


def made(store: RoundStore, key: str = "k1") -> RoundRecord:
    """A round whose weights lie in its work folder, as a lever leaves them."""
    folder = store.workdir(key) / "out"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of " + key.encode())
    child = replace(PARENT, weights=Weights("full", str(folder), "digest-" + key))
    return RoundRecord(
        key,
        "weights",
        {"updates": 2},
        7,
        PARENT,
        child,
        EVALUATION,
        EVALUATION,
        True,
        Cost(rollouts=9),
        {"x": [(0, 1.0)]},
    )


def test_a_round_comes_back_equal_with_its_weights(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    assert store.get("k1") is None
    stored = store.put(made(store))
    assert store.get("k1") == stored
    assert Path(stored.child.weights.path, "model.safetensors").read_bytes() == b"weights of k1"
    assert not store.workdir("k1").exists()
    assert [p.name for p in store.folder.iterdir()] == ["k1"]


def test_a_home_may_be_moved(tmp_path: Path) -> None:
    store = RoundStore(tmp_path / "old")
    first = store.put(made(store))
    second = replace(made(store, "k2"), lever="prompt", parent=first.child, child=first.child)
    store.put(second)
    shutil.move(tmp_path / "old", tmp_path / "new")
    read = RoundStore(tmp_path / "new").get("k2")
    assert read is not None
    assert Path(read.child.weights.path) == tmp_path / "new" / "rounds" / "k1" / "weights"
    assert read.child.digest == first.child.digest


@pytest.mark.parametrize("damage", ["record", "weights", "missing", "cut"])
def test_a_corrupt_round_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    store = RoundStore(tmp_path)
    store.put(made(store))
    record, weights = store.folder / "k1" / "record.json", store.folder / "k1" / "weights" / "model.safetensors"
    if damage == "record":
        data = json.loads(record.read_text())
        data["value"]["record"]["accepted"] = False
        record.write_text(json.dumps(data))
    elif damage == "weights":
        weights.write_bytes(b"weights of k0")
    elif damage == "missing":
        weights.unlink()
    else:
        record.write_text(record.read_text()[:100])
    with pytest.raises(StoreError, match="Delete the folder") as caught:
        store.get("k1")
    assert str(store.folder / "k1") in str(caught.value)
    assert record.exists()


def test_half_written_rounds_are_not_seen(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    (store.folder / ".k1.123.tmp").mkdir(parents=True)
    store.workdir("k1").mkdir()
    assert store.get("k1") is None


def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    store.put(made(store))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone, ours = (store.folder / f".k2.0f.{machine()}.{pid}.tmp" for pid in (dead.stdout.strip(), os.getpid()))
    resumable = store.workdir("k3")
    for folder in (gone, ours, resumable):
        folder.mkdir()
    store.clear()
    assert not gone.exists()
    assert ours.exists()
    assert resumable.exists()
    assert store.get("k1") is not None


def test_what_another_machine_writes_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    fresh, old = (store.folder / f".k{n}.00000000-1.tmp" for n in range(2))
    for folder in (fresh, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    store.clear()
    assert fresh.exists()
    assert not old.exists()


def test_a_process_that_is_gone_is_told_by_its_mark(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    assert is_left(tmp_path / f".k.{machine()}-{dead.stdout.strip()}.tmp")
    assert not is_left(tmp_path / f".k.{mark()}.tmp")


def test_the_first_to_store_a_round_stays(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    first = store.put(made(store))
    late = store.put(replace(made(store), seed=first.seed + 1))
    assert late == first == store.get("k1")
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_no_half_round(tmp_path: Path) -> None:
    store = RoundStore(tmp_path)
    record = made(store)
    shutil.rmtree(Path(record.child.weights.path))  # copying will fail, as on a full disk
    with pytest.raises(StoreError, match="k1"):
        store.put(record)
    assert [p.name for p in store.folder.iterdir()] == ["k1.part"]


def test_one_at_a_time_computes_a_round(tmp_path: Path) -> None:
    store, order = RoundStore(tmp_path), []

    def work(name: str) -> None:
        with store.lock("k1"):
            order.append(f"{name} in")
            order.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(n,)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [o[0] for o in order] in (list("aabb"), list("bbaa"))


def test_who_waits_for_a_round_is_told(tmp_path: Path) -> None:
    store, told, inside = RoundStore(tmp_path), threading.Event(), threading.Event()

    def wait() -> None:
        with store.lock("k1", told.set):
            inside.set()

    with store.lock("k1"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert told.wait(5)
        assert not inside.is_set()
    thread.join()
    assert inside.is_set()


def test_evaluations_are_kept_and_checked(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path)
    assert store.get("e") is None
    store.put("e", EVALUATION)
    assert store.get("e") == EVALUATION
    path = tmp_path / "evaluations" / "e.json"
    path.write_text(path.read_text().replace("3.5", "4.5"))
    with pytest.raises(StoreError, match="Delete the file"):
        store.get("e")


def test_sealed_json_round_trips(tmp_path: Path) -> None:
    write_sealed(tmp_path / "v.json", {"a": [1, "é", None, 0.1]})
    assert read_sealed(tmp_path / "v.json") == {"a": [1, "é", None, 0.1]}
