"""From stored records to the report: which arm won, which lever earned what, what it cost.

Reads records only: runs nothing, chooses on dev only, and says so of test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from colever.errors import UsageError
from colever.optimizers.elsewhere import elsewhere, trained
from colever.optimizers.flips import flips_between
from colever.optimizers.folding import folded_rounds
from colever.optimizers.fronts import Place, cost_to, front, levels, places
from colever.optimizers.judged import guarded
from colever.optimizers.power import would_resolve
from colever.optimizers.prompt_rounds import prompt_rounds
from colever.optimizers.statistics import Values, lever_effects, mean_estimate, paired_effect
from colever.optimizers.study import StudyFolder, StudyState, priced
from colever.reported import ArmRow, Cell, Elsewhere, Estimate, Flips, Stop, StudyReport, Threshold
from colever.types import Candidate, Cost, Evaluation, LeverName, RoundRecord, TrialRecord

LEVELS = (0.7, 0.8, 0.9)
CELLS = ("base", "prompt", "weights", "both")
Evaluations = Callable[[Candidate, str], Evaluation | None]


@dataclass(frozen=True)
class Choice:
    """A candidate chosen on dev, with the schedule that made it."""

    candidate: Candidate
    schedule: str
    dev: Evaluation


def choose_arms(base: Candidate, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> dict[str, Choice]:
    """base, and the best on dev among all that prompt rounds alone, weight rounds alone, or both kinds made.

    Every prefix of a trial counts as made by its rounds; a tie goes to the earlier trial and the shorter prefix.
    """
    chosen = {"base": Choice(base, "", base_dev)}
    for trial in trials:
        for end, record in enumerate(trial.rounds, 1):
            levers = {r.lever for r in trial.rounds[:end]}
            name = "both" if len(levers) == 2 else next(iter(levers))
            dev = record.dev
            if name not in chosen or dev.score > chosen[name].dev.score:
                schedule = ",".join(r.lever[0] for r in trial.rounds[:end])
                chosen[name] = Choice(record.kept, schedule, dev)
    return chosen


def choose_winner(state: StudyState, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The completed trial with the highest dev score; a tie goes to the earlier one.

    Where cost is the objective: the one that got to the target at the least cost, if any did.
    """
    ended = [t for t in trials if t.state == "complete" and t.dev is not None]
    if state.objective == "cost":
        there = [(cost, t) for t in ended if (cost := cost_to(state.target, t, state.axis)) is not None]
        if there:
            return min(there, key=lambda item: (item[0], item[1].number))[1]
    return max(ended, key=lambda t: (t.dev.score if t.dev else 0.0, -t.number), default=None)


def parts_of(winner: TrialRecord, base: Candidate) -> dict[str, Candidate]:
    """The winner's prompts and weights taken apart; w* was learned under p* where prompts came first.

    The whole alone where a round folded prompts into weights: w* then holds what prompts earned.
    """
    whole = winner.candidate
    if folded_rounds(winner.rounds):
        return {"p*,w*": whole}
    return {
        "p*,w0": replace(whole, weights=base.weights),
        "p0,w*": replace(base, weights=whole.weights),
        "p*,w*": whole,
    }


def planned(state: StudyState, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> list[tuple[Candidate, str]]:
    """What is evaluated once when a study ends: cells, parts, first arms and front on test, cells on watched splits.

    Of stored trials, which have no price: winner and front are those of the report.
    """
    trials = [priced(t, state.dollars_per_hour) for t in trials]
    cells = [choice.candidate for choice in choose_arms(state.base, base_dev, trials).values()]
    winner = choose_winner(state, trials)
    parts = list(parts_of(winner, state.base).values()) if winner else []
    arms = [t.candidate for t in _first_arms(state, trials).values()]
    best = [place.candidate for place in front(_places(state, base_dev, trials), state.axis)]
    plan = [(candidate, "test") for candidate in [*cells, *parts, *arms, *best]]
    plan += [(candidate, split) for split in state.watched for candidate in cells]
    return list({(candidate.digest, split): (candidate, split) for candidate, split in plan}.values())


def build_report(
    state: StudyState,
    trials: Sequence[TrialRecord],
    evaluations: Evaluations,
    expected: Cost | None = None,
    there: tuple[Sequence[Elsewhere], Cost] = ((), Cost()),
) -> StudyReport:
    """The report; on a study that is not finished, dev only. ``expected`` is what a dry run said of the search.

    ``there`` is what the weights did to other tasks, and what reading them cost.

    Raises ValueError if base was not evaluated on dev.
    """
    base_dev, stored = evaluations(state.base, "dev"), trials
    trials = [priced(t, state.dollars_per_hour) for t in stored]
    if base_dev is None:
        raise ValueError(f"study {state.study!r}: base was not evaluated on dev yet")
    measured = _Measured(state, evaluations)
    chosen = choose_arms(state.base, base_dev, trials)
    winner = choose_winner(state, trials)
    path = winner.rounds if winner else ()
    parts = parts_of(winner, state.base) if winner else {}
    final = winner.dev if winner and winner.dev else base_dev
    effects = measured.effects(chosen, _first_arms(state, trials), winner)
    gain = effects.get("gain")
    found = _places(state, base_dev, trials)

    def at_price(cost: Cost) -> Cost:
        return cost.priced(state.dollars_per_hour)

    return StudyReport(
        study=state.study,
        task=state.task,
        model=state.model,
        target=state.target,
        finished=state.finished,
        has_gold=state.has_gold,
        table={
            name: measured.cell(name, choice.candidate, "test", choice.schedule, choice.dev.score)
            if (choice := chosen.get(name))
            else Cell(name, None, None)
            for name in CELLS
        },
        parts={name: measured.cell(name, candidate, "test") for name, candidate in parts.items()},
        effects=effects,
        thresholds=thresholds(base_dev, path, gold=state.has_gold),
        arms=[measured.arm(trial, base_dev) for trial in trials if trial.dev is not None],
        path=path,
        winner=winner.schedule if winner else "",
        cost=sum(({r.key: r.cost for t in trials for r in t.rounds}).values(), at_price(base_dev.cost + state.lost)),
        expected=at_price(expected) if expected else None,
        reading_cost=at_price(measured.reading_cost(planned(state, base_dev, stored)) + there[1]),
        objective=state.objective,
        axis=state.axis,
        front=[measured.stop(place) for place in front(found, state.axis)],
        levels=levels(found, state.axis, sorted({*LEVELS, state.target})),
        elsewhere=there[0],
        dev_gain=_headline(final, state.has_gold) - _headline(base_dev, state.has_gold),
        test_gain=gain.value if gain else None,
        watched={
            split: {name: measured.cell(name, c.candidate, split, c.schedule) for name, c in chosen.items()}
            for split in state.watched
        }
        if state.finished
        else {},
        notes=[*state.notes, *measured.notes(chosen, winner), *_unresolved(effects)],
        flips=measured.flips(winner),
        prompt_rounds=prompt_rounds(trials),
        guard=guarded(state, base_dev, trials),
    )


def report_of(folder: StudyFolder) -> StudyReport:
    """The report of a stored study. Raises StoreError if its records cannot be read, UsageError if it has none yet."""
    state = folder.state()
    evaluations = folder.evaluations(state) if state else None
    if state is None or evaluations is None or evaluations(state.base, "dev") is None:
        raise UsageError(f"study {folder.name!r} has nothing to report yet; run its sweep")
    return stored_report(folder, state, folder.trials(state))


def stored_report(folder: StudyFolder, state: StudyState, trials: Sequence[TrialRecord]) -> StudyReport:
    """The report of these records, with what else lies in the study's home."""
    evaluations = folder.evaluations(state)
    base_dev = evaluations(state.base, "dev")
    there: tuple[Sequence[Elsewhere], Cost] = ((), Cost())
    if base_dev is not None and state.finished:
        there = elsewhere(folder, state, trained(arms_of(state, base_dev, trials)))
    return build_report(state, trials, evaluations, folder.estimate(), there)


def arms_of(state: StudyState, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> dict[str, Candidate]:
    """The candidates of the report's table, by arm."""
    return {name: choice.candidate for name, choice in choose_arms(state.base, base_dev, trials).items()}


def thresholds(base: Evaluation, path: Sequence[RoundRecord], *, gold: bool) -> list[Threshold]:
    """For each level, the lever and round (1 = first) that first crossed it on dev, and the cost by then.

    Lever ``base`` and round 0 where base is there already; None where the path never is.
    """
    points = path_points(base, path, gold=gold)
    found = []
    for level in LEVELS:
        point = next((p for p in points if p[3] >= level - 1e-12), None)
        found.append(Threshold(level, *point[:3]) if point else Threshold(level, None, None, None))
    return found


def path_points(
    base: Evaluation, path: Sequence[RoundRecord], *, gold: bool
) -> list[tuple[LeverName | Literal["base"], int, Cost, float]]:
    """(lever, round, cost so far, dev) of the candidate kept: base and 0 first, then every round from 1."""
    points: list[tuple[LeverName | Literal["base"], int, Cost, float]] = [("base", 0, Cost(), _headline(base, gold))]
    spent = Cost()
    for number, record in enumerate(path, 1):
        spent = spent + record.cost
        points.append((record.lever, number, spent, _headline(record.dev, gold)))
    return points


class _Measured:
    """Stored evaluations as cells, rows and effects; test is shown for finished studies only."""

    def __init__(self, state: StudyState, evaluations: Evaluations) -> None:
        self.state, self._evaluations = state, evaluations
        self._read: dict[tuple[str, str], Evaluation | None] = {}

    def on(self, candidate: Candidate, split: str) -> Evaluation | None:
        """Read once: arms that are one candidate share their values, so that their effect is 0 for certain."""
        if not self.state.finished:
            return None
        key = candidate.digest, split
        if key not in self._read:
            self._read[key] = self._evaluations(candidate, split)
        return self._read[key]

    def cell(self, name: str, candidate: Candidate, split: str, schedule: str = "", dev: float | None = None) -> Cell:
        found = self.on(candidate, split)
        if found is None:
            return Cell(name, None, None, schedule, dev)
        score, gold = mean_estimate(found.scores), mean_estimate(found.golds)
        examples = sum(value is not None for value in found.scores)
        return Cell(
            name, score, gold, schedule, dev, found.completion_tokens, found.by_criterion, examples,
            found.prompt_tokens, found.calls,
        )  # fmt: skip

    def arm(self, trial: TrialRecord, base_dev: Evaluation) -> ArmRow:
        gold = self.state.has_gold
        test = self.on(trial.candidate, "test")
        dev = trial.dev
        return ArmRow(
            schedule=trial.schedule,
            dev=_headline(dev, gold) if dev else float("nan"),
            test=_headline(test, gold) if test else None,
            cost=trial.cost,
            trial=trial.number,
            dev_score=dev.score if dev else None,
            dev_gold=dev.gold if dev else None,
            curve=[(cost, value) for _, _, cost, value in path_points(base_dev, trial.rounds, gold=gold)],
        )

    def stop(self, place: Place) -> Stop:
        """With its value on test, where that was read."""
        test = self.on(place.candidate, "test")
        return replace(place.stop, test=_headline(test, self.state.has_gold) if test else None)

    def reading_cost(self, plan: Sequence[tuple[Candidate, str]]) -> Cost:
        """Of the evaluations that are made once, when the study ends."""
        return sum((e.cost for candidate, split in plan if (e := self.on(candidate, split)) is not None), Cost())

    def effects(
        self, chosen: Mapping[str, Choice], first: Mapping[str, TrialRecord], winner: TrialRecord | None
    ) -> dict[str, Estimate]:
        """On gold where there is gold, else on the score; the score's own under ``<name>_score``."""
        found = self._effects(chosen, first, winner, gold=False)
        if not self.state.has_gold:
            return found
        return self._effects(chosen, first, winner, gold=True) | {f"{name}_score": e for name, e in found.items()}

    def _effects(
        self, chosen: Mapping[str, Choice], first: Mapping[str, TrialRecord], winner: TrialRecord | None, *, gold: bool
    ) -> dict[str, Estimate]:
        values = {name: v for name, c in chosen.items() if (v := self._values(c.candidate, gold)) is not None}
        effects = lever_effects(values) if all(name in values for name in CELLS) else {}
        pairs: dict[str, tuple[Values | None, Values | None]] = {}
        if "p,w" in first and "w,p" in first:
            pairs["order"] = tuple(self._values(first[s].candidate, gold) for s in ("p,w", "w,p"))  # type: ignore[assignment]
        if winner is not None:
            pairs["gain"] = (self._values(winner.candidate, gold), values.get("base"))
        for name, (one, other) in pairs.items():
            if one is not None and other is not None and (effect := paired_effect([(1, one), (-1, other)])):
                effects[name] = effect
        return effects

    def flips(self, winner: TrialRecord | None) -> Flips | None:
        base, best = (self.on(c, "test") if c else None for c in (self.state.base, winner and winner.candidate))
        return flips_between(base, best, gold=self.state.has_gold) if base and best else None

    def _values(self, candidate: Candidate, gold: bool) -> Values | None:
        found = self.on(candidate, "test")
        return None if found is None else found.golds if gold else found.scores

    def notes(self, chosen: Mapping[str, Choice], winner: TrialRecord | None) -> list[str]:
        if not self.state.finished:
            return ["The study is not finished: dev only. Run the same sweep command again to go on."]
        notes = []
        folded = folded_rounds(winner.rounds) if winner else []
        if folded:
            which = f"round{'s' * (len(folded) > 1)} {', '.join(map(str, folded))}"
            notes.append(
                f"Parts: {which} of the winner folded the prompts before it into the weights, so that its prompts and "
                "weights cannot be taken apart; the arms tell what each lever earned."
            )
        elif winner and len({record.lever for record in winner.rounds}) == 2:
            along = ",".join(record.lever[0] for record in winner.rounds)
            notes.append(f"Parts: the winner's weights were learned along {along}, not under the base prompts.")
        for name, choice in chosen.items():
            found = self.on(choice.candidate, "test")
            if found and found.infrastructure_failures:
                total, lost = len(found.scores), found.infrastructure_failures
                known = (total - lost) / total
                bound = f"the score is {found.score * known:.1%}"
                if found.gold is not None:
                    bound += f" and gold {found.gold * known:.1%}"
                notes.append(f"{name}: {lost} of {total} test rollouts got no score; counted as 0 {bound}.")
        return notes


def _unresolved(effects: Mapping[str, Estimate]) -> list[str]:
    """Of each lever's share and the interaction: what would resolve it."""
    return [
        f"Unresolved, {name}: {would_resolve(effects[name])} (80 % power, this training run)."
        for name in ("prompt", "weights", "interaction")
        if name in effects and not effects[name].resolved and effects[name].value
    ]


def _first_arms(state: StudyState, trials: Sequence[TrialRecord]) -> dict[str, TrialRecord]:
    """The first completed trial of each of the study's own first schedules."""
    first: dict[str, TrialRecord] = {}
    for trial in trials:
        if trial.state == "complete" and trial.schedule in state.schedules:
            first.setdefault(trial.schedule, trial)
    return first


def _places(state: StudyState, base_dev: Evaluation, trials: Sequence[TrialRecord]) -> list[Place]:
    return places(state.base, base_dev, trials, gold=state.has_gold)


def _headline(evaluation: Evaluation, gold: bool) -> float:
    return evaluation.gold if gold and evaluation.gold is not None else evaluation.score
