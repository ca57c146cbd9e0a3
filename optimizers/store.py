"""Rounds and evaluations, computed once: each lies under the digest of all that it depends on.

Knows files, checksums and locks; knows nothing of levers. Layout below the home folder:

    rounds/<key>/record.json + the child's weights     a finished round (never half of one)
    rounds/<key>.part/                                 a pull in flight: survives a kill, the lever resumes in it
    evaluations/<key>.json                             a candidate on a split, with a sample of its rollouts
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colever.errors import StoreError
from colever.locks import locks_of
from colever.process import is_left, mark
from colever.samples import SampledRollout
from colever.types import Candidate, Evaluation, RoundRecord, Weights, digest_of, read_json

KEPT = ("rollouts", "gained")  # what is stored with an evaluation and is no part of it


class RoundStore:
    """Finished rounds below ``home/rounds``."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.folder = self.home / "rounds"

    def get(self, key: str) -> RoundRecord | None:
        """The stored round, its weights paths absolute, or None. Raises StoreError if it is corrupt."""
        folder = self.folder / key
        if not folder.exists():
            return None
        try:
            data = read_sealed(folder / "record.json")
            for name, expected in data["files"].items():
                if file_digest(folder / name) != expected:
                    raise ValueError(f"{folder / name} differs from its checksum")
            record = RoundRecord.from_json(data["record"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"stored round is corrupt: {error}. Delete the folder {folder} and run the same command again: "
                f"this round alone is computed again"
            ) from error
        return _map_paths(record, self._absolute)

    def put(self, record: RoundRecord) -> RoundRecord:
        """Store a finished round with the weights that its child refers to; return it with their final paths.

        Written to a temporary folder, flushed to disk, renamed: a reader sees all of it or nothing. The first to store
        a round stays: one whose hold on it was lost meanwhile gets what the other one has stored.
        """
        target, temporary = self.folder / record.key, self.folder / f".{record.key}.{mark()}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            record = self._adopt_weights(record, temporary, target)
            files = {str(p.relative_to(temporary)): file_digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
            write_sealed(
                temporary / "record.json", {"record": _map_paths(record, self._relative).to_json(), "files": files}
            )
            _sync_tree(temporary)
            temporary.rename(target)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and (first := self.get(record.key)) is not None:
                return first
            raise StoreError(f"round {record.key} cannot be written to {self.folder}: {error}") from error
        shutil.rmtree(self.workdir(record.key), ignore_errors=True)
        return record

    def workdir(self, key: str) -> Path:
        """Where a pull in flight keeps what it needs to go on after a kill."""
        return self.folder / f"{key}.part"

    def clear(self) -> None:
        """Remove what killed processes left half-written; pulls that can go on are kept."""
        for path in [*self.home.glob("*/.*.tmp"), *self.home.glob("studies/*/.*.tmp")]:
            if is_left(path):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One process at a time computes a round; a second waits, is told so, and then finds it stored."""
        with _locked(self.home, f"rounds/{key}.lock", on_wait):
            yield

    def _adopt_weights(self, record: RoundRecord, temporary: Path, target: Path) -> RoundRecord:
        weights = record.child.weights
        workdir = self.workdir(record.key).resolve()
        if weights.path is None or workdir not in Path(weights.path).resolve().parents:
            return record  # the model's own, or an earlier round's
        shutil.copytree(weights.path, temporary / "weights")
        moved = replace(weights, path=str(target / "weights"))
        return replace(record, child=replace(record.child, weights=moved))

    def _relative(self, path: str) -> str:
        resolved = Path(path).resolve()
        return str(resolved.relative_to(self.home)) if self.home in resolved.parents else str(resolved)

    def _absolute(self, path: str) -> str:
        return str(self.home / path)


class EvaluationStore:
    """Evaluations below ``home/evaluations``, each under the digest of all that it depends on."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.folder = self.home / "evaluations"

    def get(self, key: str) -> Evaluation | None:
        """The stored evaluation, or None. Raises StoreError if it is corrupt."""
        path = self.folder / f"{key}.json"
        if not path.exists():
            return None
        with self._reading(path) as data:
            return Evaluation.from_json({name: value for name, value in data.items() if name not in KEPT})

    def rollouts(self, key: str, kept: str = "rollouts") -> tuple[SampledRollout, ...]:
        """The rollouts stored with an evaluation, its sample or those that ``gained``; none of one that kept none.

        Raises StoreError if it is corrupt.
        """
        path = self.folder / f"{key}.json"
        if not path.exists():
            return ()
        with self._reading(path) as data:
            return tuple(SampledRollout.from_json(rollout) for rollout in data.get(kept, ()))

    def put(
        self,
        key: str,
        evaluation: Evaluation,
        rollouts: Sequence[SampledRollout] = (),
        gained: Sequence[SampledRollout] = (),
    ) -> None:
        """Store it with a sample of its rollouts and those that gained without gold, whole or not at all."""
        both = zip(KEPT, (rollouts, gained), strict=True)
        kept = {name: [rollout.to_json() for rollout in some] for name, some in both if some}
        write_sealed(self.folder / f"{key}.json", evaluation.to_json() | kept)

    @staticmethod
    @contextlib.contextmanager
    def _reading(path: Path) -> Iterator[Mapping[str, Any]]:
        try:
            yield read_sealed(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"stored evaluation is corrupt: {error}. Delete the file {path} and run the same command again"
            ) from error

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """One process at a time makes an evaluation; a second waits and then finds it stored."""
        with _locked(self.home, f"evaluations/{key}.lock"):
            yield


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with its own checksum, written to a temporary file, flushed, renamed, its folder made. Raises StoreError."""
    _make(path.parent)
    value = json.loads(json.dumps(value))  # what a reader will see
    temporary = path.with_name(f".{path.name}.{mark()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"checksum": digest_of(value), "value": value}, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}") from error


def read_sealed(path: Path) -> Any:
    """What ``write_sealed`` wrote. Raises OSError, or ValueError naming the file if it is not what was written."""
    data = read_json(path)
    if not isinstance(data, dict) or "value" not in data or digest_of(data["value"]) != data.get("checksum"):
        raise ValueError(f"{path} differs from its checksum")
    return data["value"]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(home: Path, name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    lock = locks_of(home).lock(name)
    lock.wait(on_wait)
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _map_paths(record: RoundRecord, change: Any) -> RoundRecord:
    def candidate(value: Candidate) -> Candidate:
        path = value.weights.path
        return (
            value
            if path is None
            else replace(value, weights=Weights(value.weights.kind, change(path), value.weights.digest))
        )

    return replace(record, parent=candidate(record.parent), child=candidate(record.child))


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
