"""A study's folder: its configuration, what its trials did, its report. Knows files; runs nothing.

Where machines share their objects, a file is read as it is there now, and written there too.

studies/<name>/config.yaml   the resolved configuration
studies/<name>/study.json    the trials, as keys into the round store
studies/<name>/estimate.json what a dry run expected of the search
studies/<name>/manifest.json what made it: command, versions, digests, machine
studies/<name>/report.json   what ``colever report --json`` prints
studies/<name>/report.html   what ``colever report --html`` writes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from colever.config import SweepConfig
from colever.errors import StoreError, UsageError
from colever.loading import load_config
from colever.optimizers.evaluate import Grounds
from colever.optimizers.guard import Rules, taken
from colever.optimizers.mirror import mirror_of
from colever.optimizers.sealed import read_sealed, temporary_of, write_sealed
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.types import Candidate, Cost, Evaluation, RoundRecord, TrialRecord


@dataclass(frozen=True)
class TrialEntry:
    """One ended trial, its rounds by key."""

    number: int
    schedule: str
    settings: Mapping[str, Any]
    state: str
    rounds: tuple[str, ...]


@dataclass(frozen=True)
class Other:
    """Another task that was scored under this study's weights: its digest, and its own prompts."""

    digest: str
    base: Candidate


@dataclass(frozen=True)
class StudyState:
    """What a report needs besides the stored rounds and evaluations."""

    study: str
    task: str
    model: str
    target: float
    has_gold: bool
    seed: int
    grounds: Grounds
    base: Candidate
    watched: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    trials: tuple[TrialEntry, ...] = ()
    finished: bool = False
    started: float = 0.0
    lost: Cost = field(default_factory=Cost)  # spent by trials that failed
    notes: tuple[str, ...] = field(default_factory=tuple)
    objective: str = "score"
    axis: str = "flops"
    dollars_per_hour: float = 0.0
    elsewhere: Mapping[str, Other] = field(default_factory=dict)  # other tasks that were scored, by name
    guard: Rules = field(default_factory=Rules)
    rubric: str = ""  # its digest; of a study that was made before this was kept, nothing
    place: str = ""  # the folder in which its last sweep was run, to find again what its settings name

    def to_json(self) -> dict[str, Any]:
        others = {name: {"digest": o.digest, "base": o.base.to_json()} for name, o in self.elsewhere.items()}
        return asdict(self) | {"base": self.base.to_json(), "elsewhere": others}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudyState:
        fields = dict(data)
        fields["base"] = Candidate.from_json(data["base"])
        fields["grounds"] = Grounds(**data["grounds"])
        fields["lost"] = Cost(**data["lost"])
        fields["trials"] = tuple(TrialEntry(**{**t, "rounds": tuple(t["rounds"])}) for t in data["trials"])
        fields["elsewhere"] = {
            name: Other(o["digest"], Candidate.from_json(o["base"])) for name, o in data.get("elsewhere", {}).items()
        }
        fields["guard"] = Rules.from_json(data.get("guard", {}))
        for name in ("watched", "schedules", "notes"):
            fields[name] = tuple(data[name])
        return cls(**fields)


class StudyFolder:
    """Reads and writes one study below ``home/studies``."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home.resolve(), name
        self.path = self.home / "studies" / name
        self._shared = mirror_of(self.home)

    @property
    def where(self) -> str:
        """All that is the study's own, for who wants to delete it."""
        return f"{self.path}" + (f" and {self._shared.uri}/studies/{self.name}" if self._shared else "")

    def file(self, name: str) -> Path:
        """One of its files, as it is now; it may not be there."""
        if self._shared is not None:
            self._shared.refresh(f"studies/{self.name}/{name}")
        return self.path / name

    def share(self, *patterns: str) -> None:
        """What was written to these of its files is seen by the machines that share the study."""
        if self._shared is not None:
            for path in sorted(path for pattern in patterns for path in self.path.glob(pattern)):
                self._shared.publish(str(path.relative_to(self.home)))

    def state(self) -> StudyState | None:
        """What is stored, or None. Raises StoreError if it is corrupt."""
        file = self.file("study.json")
        if not file.exists():
            return None
        try:
            return StudyState.from_json(read_sealed(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"study {self.name!r}: {error}. Delete the file {file.name} in {self.where} and run the sweep again: "
                "stored rounds are kept"
            ) from error

    def write(self, state: StudyState) -> None:
        self._seal("study.json", state.to_json())

    def _seal(self, name: str, value: Mapping[str, Any]) -> None:
        write_sealed(self.path / name, value)
        self.share(name)

    def manifest(self) -> dict[str, Any]:
        """What made the study. Raises StoreError where it is not there or not readable."""
        try:
            return dict(read_sealed(self.file("manifest.json")))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"study {self.name!r} has no manifest to go by: {error}") from error

    def write_manifest(self, made: Mapping[str, Any]) -> None:
        self._seal("manifest.json", made)

    def estimate(self) -> Cost | None:
        """What a dry run expected of the search; None where there was none, or the file is not readable."""
        try:
            return Cost(**read_sealed(self.file("estimate.json")))
        except (OSError, ValueError, TypeError):
            return None

    def write_estimate(self, search: Cost) -> None:
        self._seal("estimate.json", asdict(search))

    def claim(self, config: SweepConfig, running: bool = False) -> None:
        """Save the configuration; raises UsageError where the study was made, or is ``running``, with another one."""
        file = self.file("config.yaml")
        stored = self.state()
        counted = {"dollars_per_hour", "remote"} if (config.objective, config.axis) == ("cost", "dollars") else set()
        if file.exists() and stored is not None and (stored.trials or running):
            before = load_config(file)
            free = (before.resumable & config.resumable) - counted
            old, new = (c.model_dump(mode="json") for c in (before, config))
            changed = [
                f"{key} was {_short(a)}, now {_short(b)}"
                for key, a, b in _differences(old, new)
                if not {key, key.split(".")[0]} & free and not _same(key, a, b)
            ]
            if changed:
                raise UsageError(
                    f"study {self.name!r} was made with other settings ({'; '.join(changed)}): give this one another "
                    f"--study name, or delete {self.where}"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = temporary_of(file)
            temporary.write_text(config.to_yaml(), encoding="utf-8")
            temporary.replace(file)
        except OSError as error:
            raise StoreError(f"{file} cannot be written: {error}") from error
        self.share(file.name)

    def trials(self, state: StudyState) -> list[TrialRecord]:
        """The ended trials, their rounds read from the store, shared ones once, and taken as the guard has them."""
        store, read = RoundStore(self.home), dict[str, RoundRecord]()
        for key in dict.fromkeys(k for t in state.trials for k in t.rounds):
            record = store.get(key)
            if record is None:
                raise StoreError(f"study {self.name!r}: round {key} is gone from {store.folder}; run the sweep again")
            read[key] = record
        rounds = [taken([read[key] for key in t.rounds], state.guard) for t in state.trials]
        return [trial_record(t, r, state.base) for t, r in zip(state.trials, rounds, strict=True)]

    def evaluations(
        self, state: StudyState, grounds: Grounds | None = None
    ) -> Callable[[Candidate, str], Evaluation | None]:
        """Looks up stored evaluations of the study's task and engine, or of other grounds at the study's seed."""
        store, on = EvaluationStore(self.home), grounds or state.grounds
        return lambda candidate, split: store.get(on.evaluation_key(candidate, split, state.seed))


def trial_record(entry: TrialEntry, rounds: Sequence[RoundRecord], base: Candidate) -> TrialRecord:
    """The record of an ended trial: each round charged in full, shared or not."""
    last = rounds[-1] if rounds else None
    return TrialRecord(
        number=entry.number,
        schedule=entry.schedule,
        settings=entry.settings,
        state=entry.state,  # type: ignore[arg-type]
        rounds=tuple(rounds),
        dev=last.dev if last else None,
        candidate=last.kept if last else base,
        cost=sum((r.cost for r in rounds), Cost()),
    )


def priced(trial: TrialRecord, dollars_per_hour: float) -> TrialRecord:
    """The same with the machine's time in the dollars of every cost."""
    rounds = tuple(replace(r, cost=r.cost.priced(dollars_per_hour)) for r in trial.rounds)
    return replace(trial, rounds=rounds, cost=trial.cost.priced(dollars_per_hour))


def find_study(home: Path, name: str) -> StudyFolder:
    """The study of that name, else the latest study of that task. Raises UsageError that lists what there is."""
    folder = StudyFolder(home, name)
    if name and folder.state() is not None:
        return folder
    found = studies_in(home)
    of_task, broken = [], []
    for other in found:
        try:
            state = other.state()
        except StoreError:
            broken.append(other.name)
            continue
        if state is not None and state.task == name:
            of_task.append((state.started, other.name, other))
    if of_task:
        return max(of_task, key=lambda item: item[:2])[2]
    known = ", ".join(f.name for f in found) or "none yet: run `colever sweep arithmetic`"
    known += f" (not readable: {', '.join(broken)})" if broken else ""
    raise UsageError(f"no study and no task with a study is called {name!r} in {home}; there is: {known}")


def studies_in(home: Path) -> list[StudyFolder]:
    """All studies of the home folder, and of the machines that share its objects, by name."""
    home = home.resolve()
    names, shared = {p.parent.name for p in home.glob("studies/*/study.json")}, mirror_of(home)
    return [StudyFolder(home, name) for name in sorted(names | set(shared.studies() if shared else ()))]


def same_task(one: str, other: str) -> bool:
    """Whether two spellings name one task: a file's path may be written in several ways."""
    (file, _, name), (other_file, _, other_name) = one.rpartition(":"), other.rpartition(":")
    if not file or not other_file:
        return one == other
    return name == other_name and Path(file).resolve() == Path(other_file).resolve()


def _same(key: str, old: Any, new: Any) -> bool:
    """Whether two spellings of a setting name one thing."""
    if key in ("rubric", "data", "start"):
        return bool(old and new) and Path(old).resolve() == Path(new).resolve()
    return key == "task" and same_task(old, new)


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [(path, old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
