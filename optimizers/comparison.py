"""Finished studies as rows side by side; those that differ only in their training seed share one. Runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from colever.comparison import OWN, ComparisonRow, Reached
from colever.config import SweepConfig
from colever.errors import UsageError
from colever.loading import load_config
from colever.optimizers.attribution import CELLS, choose_arms, path_points
from colever.optimizers.estimate import scaled
from colever.optimizers.power import would_resolve
from colever.optimizers.statistics import Runs, Values, lever_effects_over_seeds, mean_over_seeds, seeds_effect
from colever.optimizers.study import StudyFolder, StudyState, find_study, studies_in
from colever.reported import Estimate
from colever.types import Cost, Evaluation, TrialRecord, digest_of


@dataclass(frozen=True)
class _Study:
    """What a row needs of one finished study."""

    folder: StudyFolder
    config: SweepConfig
    state: StudyState
    trials: Sequence[TrialRecord]
    examples: int
    values: Mapping[str, Values]  # arm → per-example values on test
    schedules: dict[str, str]  # arm → the schedule that was chosen on dev
    reached: tuple[str, Cost] | None  # the cheapest arm that reached the target on dev


def compare(home: Path, names: Sequence[str]) -> list[ComparisonRow]:
    """One row for each task, rubric, model and settings among these studies (none: all).

    A task's name is its latest study. Of two studies with one seed the later one counts.
    Raises UsageError for a name that is unknown or a study that is not finished.
    """
    folders = [find_study(home, name) for name in names] if names else _finished(home)
    if not folders:
        raise UsageError(f"there is no finished study in {home}: run `colever sweep all`")
    rows: dict[str, dict[int, _Study]] = {}
    for study in sorted(map(_read, {f.path: f for f in folders}.values()), key=lambda s: s.state.started):
        rows.setdefault(_settings_digest(study), {})[study.state.seed] = study
    return [_row([studies[seed] for seed in sorted(studies)]) for studies in rows.values()]


def _finished(home: Path) -> list[StudyFolder]:
    return [folder for folder in studies_in(home) if (state := folder.state()) is not None and state.finished]


def _settings_digest(study: _Study) -> str:
    """Of everything that a study depends on but its seed; of task, rows and rubric the content counts."""
    settings, free = study.config.model_dump(mode="json"), study.config.resumable | {"seed", "task", "data", "rubric"}
    kept = {k: v for k, v in settings.items() if k == "trials" or k not in free}
    return digest_of([kept, asdict(study.state.grounds)])


def _config(folder: StudyFolder) -> SweepConfig:
    file = folder.file("config.yaml")
    if not file.exists():
        raise UsageError(f"study {folder.name!r}: {file} is gone; run its sweep again")
    return load_config(file)


def _rubric(study: _Study) -> str:
    """``strict.toml 3f09ab`` or ``own 81c2d4``: a name alone may stand for two."""
    name = Path(study.config.rubric).name if study.config.rubric else OWN
    return f"{name} {study.state.rubric[:6]}".strip()


def _read(folder: StudyFolder) -> _Study:
    state = folder.state()
    if state is None or not state.finished:
        raise UsageError(f"study {folder.name!r} is not finished, so test is unread: run its sweep to the end first")
    trials, stored = folder.trials(state), folder.evaluations(state)
    base_dev = stored(state.base, "dev")
    if base_dev is None:
        raise UsageError(f"study {folder.name!r}: base's evaluation is gone; run its sweep again")
    chosen = choose_arms(state.base, base_dev, trials)
    read = {choice.candidate.digest: stored(choice.candidate, "test") for choice in chosen.values()}
    tests = {name: read[choice.candidate.digest] for name, choice in chosen.items()}  # one candidate, one list
    values = {n: t.golds if state.has_gold else t.scores for n, t in tests.items() if t is not None}
    if "base" not in values:
        raise UsageError(f"study {folder.name!r}: its evaluations on test are gone; run its sweep again")
    return _Study(
        folder, _config(folder), state, trials, len(values["base"]), values,
        {name: choice.schedule for name, choice in chosen.items()}, _cheapest(state, base_dev, trials),
    )  # fmt: skip


def _cheapest(state: StudyState, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> tuple[str, Cost] | None:
    """The arm that reached the target on dev with the fewest rollouts, and its cost by then."""
    found = []
    for trial in trials:
        for end, (_, _, cost, value) in enumerate(path_points(base_dev, trial.rounds, gold=state.has_gold)):
            if value >= state.target - 1e-12:
                levers = {r.lever for r in trial.rounds[:end]}
                found.append(("both" if len(levers) == 2 else next(iter(levers), "base"), cost))
                break
    return min(found, key=lambda way: way[1].rollouts, default=None)


def _row(studies: Sequence[_Study]) -> ComparisonRow:
    first = studies[0]
    pulled = [name for name in CELLS if all(name in s.values for s in studies)]
    arms = {name: [s.values[name] for s in studies] for name in pulled}
    effects = _effects(arms)
    reached = [s.reached for s in studies if s.reached is not None]
    most = Counter(name for name, _ in reached).most_common(1)
    return ComparisonRow(
        task=first.state.task,
        model=first.state.model,
        studies=tuple(s.folder.name for s in studies),
        seeds=tuple(s.state.seed for s in studies),
        examples=first.examples,
        gold=first.state.has_gold,
        target=first.state.target,
        table={name: mean_over_seeds(arms[name]) if name in arms else None for name in CELLS},
        effects=effects,
        needed={name: would_resolve(e) for name, e in effects.items() if not e.resolved},
        schedules={name: tuple(s.schedules[name] for s in studies) for name in pulled if name != "base"},
        reached=Reached(len(reached), most[0][0] if most else "", _mean([cost for _, cost in reached])),
        cost=sum((r.cost for s in studies for r in {r.key: r for t in s.trials for r in t.rounds}.values()), Cost()),
        rubric=_rubric(first),
    )


def _effects(arms: Mapping[str, Runs]) -> dict[str, Estimate]:
    """Shares and interaction where all four arms are there; who is ahead alone where both single ones are."""
    effects = lever_effects_over_seeds(arms) if all(name in arms for name in CELLS) else {}
    if "prompt" in arms and "weights" in arms:
        ahead = seeds_effect([(1, arms["weights"]), (-1, arms["prompt"])])
        effects |= {"ahead": ahead} if ahead is not None else {}
    return effects


def _mean(costs: Sequence[Cost]) -> Cost | None:
    return scaled(sum(costs, Cost()), 1 / len(costs)) if costs else None
