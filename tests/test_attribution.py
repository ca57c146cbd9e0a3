"""The report from records alone: choices on dev, thresholds along the path, cells, what is left empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from colever.optimizers.attribution import build_report, choose_arms, choose_winner, parts_of, planned, thresholds
from colever.optimizers.evaluate import Grounds
from colever.optimizers.flips import flips_between, mcnemar
from colever.optimizers.study import StudyState
from colever.types import Candidate, Cost, Evaluation, PredictorPrompt, RoundRecord, TrialRecord, Weights

BASE = Candidate({"solve": PredictorPrompt("Solve.")})


def evaluation(score: float, gold: float | None = None, split: str = "dev", count: int = 100) -> Evaluation:
    """``count`` examples, of which the first share are right."""
    values = tuple(float(i < round(score * count)) for i in range(count))
    golds = (None,) * count if gold is None else tuple(float(i < round(gold * count)) for i in range(count))
    return Evaluation(split, tuple(map(str, range(count))), values, golds, {"right": score}, {"solve": 5.0})


def candidate(prompt: str, weights: str) -> Candidate:
    found = Weights() if weights == "base" else Weights("full", "/w", weights)
    return Candidate({"solve": PredictorPrompt(prompt)}, found)


class Records:
    """Trials from schedules and dev scores, and test evaluations by candidate."""

    def __init__(self, gold: bool = False) -> None:
        self.gold = gold
        self.dev, self.tests = {BASE.digest: self._of(0.5)}, {BASE.digest: self._of(0.5, "test")}

    def _of(self, score: float, split: str = "dev") -> Evaluation:
        return evaluation(score, score - 0.1 if self.gold else None, split)

    def trial(self, number: int, schedule: str, devs: Sequence[float], test: float | None = None) -> TrialRecord:
        parent, before, rounds = BASE, self._of(0.5), []
        for i, (letter, dev) in enumerate(zip(schedule.split(","), devs, strict=True)):
            mark = f"{number}.{i}"
            child = (
                replace(parent, weights=Weights("full", "/w", mark))
                if letter == "w"
                else candidate(mark, parent.weights.digest)
            )
            after = self._of(dev)
            name = "weights" if letter == "w" else "prompt"
            record = RoundRecord(
                mark, name, {}, 0, parent, child, before, after, after.score > before.score, Cost(rollouts=100)
            )  # type: ignore[arg-type]
            rounds.append(record)
            parent, before = record.kept, record.dev
        self.tests[parent.digest] = self._of(test if test is not None else devs[-1], "test")
        return TrialRecord(
            number, schedule, {}, "complete", tuple(rounds), before, parent, Cost(rollouts=100 * len(rounds))
        )

    def __call__(self, wanted: Candidate, split: str) -> Evaluation | None:
        return (self.dev if split == "dev" else self.tests).get(wanted.digest)

    def state(self, **changes: object) -> StudyState:
        grounds = Grounds("t", "e", {})
        made = StudyState(
            "s", "t", "m", 0.9, self.gold, 0, grounds, BASE, schedules=("p", "w", "p,w", "w,p"), finished=True
        )
        return replace(made, **changes)  # type: ignore[arg-type]


def four(records: Records) -> list[TrialRecord]:
    return [
        records.trial(0, "p", [0.6]),
        records.trial(1, "w", [0.7]),
        records.trial(2, "p,w", [0.6, 0.92], test=0.9),
        records.trial(3, "w,p", [0.7, 0.8], test=0.8),
    ]


def test_arms_are_chosen_on_dev_and_prefixes_count() -> None:
    records = Records()
    trials = four(records)
    chosen = choose_arms(BASE, evaluation(0.5), trials)
    assert {name: choice.schedule for name, choice in chosen.items()} == {
        "base": "",
        "prompt": "p",
        "weights": "w",
        "both": "p,w",
    }
    winner = choose_winner(Records().state(), trials)
    assert winner is not None
    assert winner.schedule == "p,w"
    only = choose_arms(BASE, evaluation(0.5), [trials[2]])
    assert only["prompt"].schedule == "p"
    assert "weights" not in only


def test_a_tie_goes_to_the_earlier_trial_and_the_shorter_prefix() -> None:
    records = Records()
    trials = [records.trial(0, "p,p", [0.6, 0.55]), records.trial(1, "p", [0.6])]
    chosen = choose_arms(BASE, evaluation(0.5), trials)
    assert chosen["prompt"].schedule == "p"
    assert chosen["prompt"].candidate == trials[0].candidate
    winner = choose_winner(Records().state(), trials)
    assert winner is not None
    assert winner.number == 0


def test_effects_are_shapley_shares_on_test() -> None:
    records = Records()
    report = build_report(records.state(), four(records), records)
    assert report.effects["prompt"].value == pytest.approx(0.5 * ((0.6 - 0.5) + (0.9 - 0.7)))
    assert report.effects["weights"].value == pytest.approx(0.5 * ((0.7 - 0.5) + (0.9 - 0.6)))
    assert report.effects["interaction"].value == pytest.approx(0.9 - 0.6 - 0.7 + 0.5)
    assert report.effects["order"].value == pytest.approx(0.1)
    assert (report.dev_gain, report.test_gain) == (pytest.approx(0.42), pytest.approx(0.4))
    assert report.cost.rollouts == 100 * len({r.key for t in four(records) for r in t.rounds})


def test_a_lever_whose_round_was_dropped_has_no_effect_for_certain() -> None:
    records = Records()
    trials = [records.trial(0, "p", [0.4], test=0.5), records.trial(1, "w,p", [0.7, 0.6], test=0.7)]

    def anew(wanted: Candidate, split: str) -> Evaluation | None:
        found = records(wanted, split)
        return None if found is None else Evaluation.from_json(found.to_json())

    effects = build_report(records.state(), trials, anew).effects
    for name in ("prompt", "interaction"):
        assert (effects[name].value, effects[name].low, effects[name].high) == (0, 0, 0)
    assert effects["weights"].resolved


def test_thresholds_name_lever_round_and_cost() -> None:
    records = Records()
    trial = records.trial(0, "p,w", [0.75, 0.95])
    found = thresholds(evaluation(0.5), trial.rounds, gold=False)
    assert [(t.at, t.lever, t.round, t.cost.rollouts if t.cost else None) for t in found] == [
        (0.7, "prompt", 1, 100), (0.8, "weights", 2, 200), (0.9, "weights", 2, 200),
    ]  # fmt: skip
    above = thresholds(evaluation(0.72), [], gold=False)
    assert [(t.lever, t.round) for t in above] == [("base", 0), (None, None), (None, None)]


def test_a_round_that_was_dropped_crosses_nothing() -> None:
    records = Records()
    trial = records.trial(0, "w,p", [0.75, 0.60])
    assert [t.round for t in thresholds(evaluation(0.5), trial.rounds, gold=False)] == [1, None, None]


def test_where_there_is_gold_it_is_the_headline() -> None:
    records = Records(gold=True)
    report = build_report(records.state(), four(records), records)
    assert report.table["both"].gold is not None
    assert report.table["both"].gold.value == pytest.approx(0.8)
    assert report.arms[2].dev == pytest.approx(0.82)
    assert report.arms[2].dev_score == pytest.approx(0.92)
    assert [t.round for t in report.thresholds] == [2, 2, None]  # gold is 0.82 where the score is 0.92
    assert {"prompt", "prompt_score", "interaction_score"} <= set(report.effects)


def test_an_unfinished_study_shows_dev_only() -> None:
    records = Records()
    report = build_report(records.state(finished=False), four(records), records)
    assert all(cell.score is None for cell in report.table.values())
    assert report.effects == {}
    assert report.arms[0].test is None
    assert report.arms[0].dev == pytest.approx(0.6)


def test_a_study_without_trials_has_base_alone() -> None:
    records = Records()
    report = build_report(records.state(), [], records)
    assert report.winner == ""
    assert report.table["both"].score is None
    assert report.table["base"].score is not None


def test_parts_take_the_winner_apart_and_are_planned_once() -> None:
    records = Records()
    trials = four(records)
    plan = planned(records.state(watched=("far",)), evaluation(0.5), trials)
    assert len(plan) == len({(c.digest, split) for c, split in plan})
    assert {split for _, split in plan} == {"test", "far"}
    winner = trials[2].candidate
    apart = {(c.prompts["solve"].instructions, c.weights.digest) for c, split in plan if split == "test"}
    assert (winner.prompts["solve"].instructions, "base") in apart
    assert ("Solve.", winner.weights.digest) in apart
    assert sum(split == "far" for _, split in plan) == 4


def test_a_round_that_folded_prompts_leaves_no_parts() -> None:
    records = Records()
    trials = four(records)
    rounds = trials[2].rounds
    folded = replace(rounds[1], child=replace(rounds[1].child, prompts=BASE.prompts), notes={"folded": True})
    winner = replace(trials[2], rounds=(rounds[0], folded), candidate=folded.child)
    records.tests[winner.candidate.digest] = records._of(0.9, "test")
    trials[2] = winner
    report = build_report(records.state(), trials, records)
    assert set(report.parts) == {"p*,w*"}
    assert any(note.startswith("Parts: round 2 of the winner folded") for note in report.notes)
    assert not any("not under the base prompts" in note for note in report.notes)
    assert report.effects["gain"].value == pytest.approx(0.4)
    refused = replace(winner, rounds=(rounds[0], replace(folded, accepted=False)))
    assert set(parts_of(refused, BASE)) == {"p*,w*", "p*,w0", "p0,w*"}


def test_flips_are_the_examples_that_the_winner_turned_on_test() -> None:
    records = Records()
    trials = four(records)
    values = list(records.tests[BASE.digest].scores)
    values[0], values[60], values[70] = 0.0, 1.0, None  # right only after, right only before as the 93rd, not scored
    values[92] = 1.0
    records.tests[BASE.digest] = replace(records.tests[BASE.digest], scores=tuple(values))
    flips = build_report(records.state(), trials, records).flips
    assert flips is not None
    assert flips.gained == ("0", *(str(i) for i in range(50, 90) if i not in (60, 70)))
    assert flips.lost == ("92",)
    assert flips.examples == 99
    assert flips.p_value == pytest.approx(2 * (1 + 40) / 2**40)
    assert build_report(records.state(finished=False), trials, records).flips is None
    assert build_report(records.state(), [], records).flips is None


def test_flips_are_on_gold_where_there_is_gold_and_part_of_the_marks_is_not_right() -> None:
    before, after = evaluation(0.5, 0.4, "test"), evaluation(0.5, 0.8, "test")
    on_gold = flips_between(before, after, gold=True)
    assert on_gold is not None
    assert len(on_gold.gained) == 40
    partly = replace(after, scores=(0.99,) * 100)
    on_score = flips_between(before, partly, gold=False)
    assert on_score is not None
    assert (len(on_score.gained), len(on_score.lost)) == (0, 50)
    assert flips_between(before, replace(after, example_ids=tuple(f"x{i}" for i in range(100))), gold=True) is None


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (0, 5, 0.0625), (8, 2, 0.109375)]
)
def test_mcnemar_is_exact(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)
