"""A rubric tuned against gold: the levers are pulled under one rubric after the other, and gold says which taught best.

    train  ── the levers see one part, under the rubric at hand
           └─ the tuning split: the other part. Its gold chooses among rubrics
    dev    ── acceptance within a trial, by the rubric at hand; its gold is not read
    test   ── read once, at the end: the own rubric and the tuned one, pulled again with fresh training seeds

The first rubric is the own one. Then a proposer, where there is one, designs some (``designer``), and a search over
weights and gates (``rubric_space``) goes on from the best so far. The chosen trial was the luckiest of many, in its
training run too: so what the tuned rubric bought is measured on runs that chose nothing.

A trial is a function of its rubric and its seed; its rounds and evaluations lie in the stores of the home folder. The
same command after a kill finds what was finished, proposes the same, and ends with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from colever.config import SweepConfig, parse_schedule
from colever.engines.bench import ANSWERS, Bench, seated
from colever.errors import BudgetExhausted, LeverError, StoreError, TaskError, UsageError
from colever.optimizers import rubric_space
from colever.optimizers.adaptive import fixed
from colever.optimizers.alternate import alternate, derive_seed
from colever.optimizers.budget import Budget
from colever.optimizers.designer import Designer
from colever.optimizers.evaluate import Evaluator
from colever.optimizers.lever import NullProgress, Progress, Staged
from colever.optimizers.sealed import read_sealed, write_sealed
from colever.optimizers.statistics import mean_over_seeds, paired_effect, seeds_effect, shared_means
from colever.optimizers.store import EvaluationStore, RoundStore
from colever.optimizers.tuning_plan import TuningPlan, cut
from colever.samples import SampledRollout
from colever.tasks.judges import open_judges, with_judge
from colever.tasks.rubric_file import load_rubric
from colever.tasks.rubric_tables import Tables, changes, write_tables
from colever.tuned import How, TriedRubric, Tuning
from colever.types import Candidate, Evaluation, RoundRecord, digest_of

if TYPE_CHECKING:
    import dspy

    from colever.engines.transformers import TransformersEngine
    from colever.optimizers.sweep import MakeLevers
    from colever.tasks.task import Task

SPLIT = "tuning"


def tune(
    config: SweepConfig,
    task: Task,
    tables: Tables,
    engine: TransformersEngine,
    home: Path,
    plan: TuningPlan,
    *,
    levers: MakeLevers | None = None,
    proposer: dspy.LM | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Tune the rubric that ``tables`` say (``rubric_tables``) of ``task``; the rest is as a study of ``config`` has it.

    Raises TaskError for a task without gold or with too few train examples, UsageError where another process is at it
    or the folder is of another tuning, BudgetExhausted where the budget ends before two rubrics were tried.
    """
    from colever.optimizers.sweep import levers_for

    if task.gold is None:
        raise TaskError(f"task {task.name!r} has no gold, against which its rubric could be tuned; accepted: one with")
    folder = home.resolve() / "tunings" / config.study_name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), seated(config.judge, home / ANSWERS) as bench:
        made = levers or levers_for(config, engine)
        run = _Run(config, task, [dict(t) for t in tables], engine, folder, plan, made, proposer, bench,
                   progress or NullProgress())  # fmt: skip
        run.scored_by(tables, run.file("given"))  # a rubric that cannot be read claims no folder
        run.claim()
        found = run.run()
        write_tables(found.tuned.tables, folder / "tuned.yaml", _head(found))
        write_sealed(folder / "tuning.json", found.to_json())
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "tuning.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"another process tunes in {folder}; accepted: another --study name, or wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _of_criterion(error: TaskError) -> bool:
    """Whether it is a rubric's criterion that broke on an answer, no gold and no program."""
    return str(error).startswith("criterion ")


def _head(found: Tuning) -> str:
    if found.best == 0:
        return f"The own rubric of {found.task}: none of {len(found.tried) - 1} others did better by gold."
    return "\n".join([f"Tuned for {found.task}, schedule {found.schedule}. What it changes:", *found.tuned.changes])


@dataclass(frozen=True)
class _Pulled:
    """What the levers made under one rubric with one seed."""

    rounds: Sequence[RoundRecord]
    candidate: Candidate
    found: Evaluation
    error: str = ""


@dataclass
class _Run:
    """One call of ``tune``."""

    config: SweepConfig
    task: Task
    tables: Tables
    engine: TransformersEngine
    folder: Path
    plan: TuningPlan
    levers: MakeLevers
    proposer: dspy.LM | None
    bench: Bench
    progress: Progress
    tried: list[TriedRubric] = field(default_factory=list)
    pulled: dict[int, _Pulled] = field(default_factory=dict)  # by the rubric's number
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rest, tuning = cut(self.task.train, self.plan.share, self.config.seed)
        self.seen = replace(self.task, train=rest, watched={SPLIT: tuning})
        self.budget = Budget(self.config.budget, dollars_per_hour=self.config.dollars_per_hour)
        self.home = self.folder.parent.parent
        self.rounds, self.stored = RoundStore(self.home), EvaluationStore(self.home)
        self.rounds.clear()

    def claim(self) -> None:
        """Raises UsageError where the folder's tuning began from something else."""
        free = self.config.resumable | {"rubric", "data", "schedules"}
        settings = {
            key: {k: v for k, v in value.items() if f"{key}.{k}" not in free} if isinstance(value, dict) else value
            for key, value in self.config.model_dump(mode="json").items()
            if key not in free
        }
        plan = {k: v for k, v in asdict(self.plan).items() if k not in ("trials", "seeds")}
        key = digest_of([settings, plan, self.seen.digest(), [dict(t) for t in self.tables], self.engine.digest])
        file = self.folder / "begun.json"
        if not file.exists():
            write_sealed(file, {"key": key})
            return
        try:
            same = read_sealed(file)["key"] == key
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{error}; delete {file} and run the same command again") from error
        if not same:
            raise UsageError(
                f"{self.folder} is of a tuning with other settings, another task or another rubric to begin with: "
                "give this one another --study name, or delete the folder"
            )

    def run(self) -> Tuning:
        order, base = self.plan.schedule, self._base(SPLIT)
        try:
            for number in range(self.plan.trials):
                self._try(number)
        except BudgetExhausted as error:
            if len(self.pulled) < 2:
                raise
            self.notes.append(f"Stopped at rubric {len(self.tried)} of {self.plan.trials}: {error}.")
        best, golds = self._best(), {number: pulled.found.golds for number, pulled in self.pulled.items()}
        found = Tuning(
            self.config.study_name, self.config.task, self.config.model, order, len(self.seen.train),
            len(self.seen.watched[SPLIT]), base.gold or 0.0, tuple(self.tried), best,
            paired_effect([(1, golds[best]), (-1, golds[0])]) if best else None,
        )  # fmt: skip
        if best:
            found = self._confirmed(found)
        return replace(found, cost=self.budget.spent, notes=tuple(self.notes))

    # --- one rubric --------------------------------------------------------------------------------

    def _try(self, number: int) -> None:
        """Propose a rubric, pull the levers under it, read gold on the tuning split."""
        told = Staged(self.progress, f"rubric {number + 1} of {self.plan.trials}")
        how, tables, why = self._proposed(number, told)
        try:
            task = self.scored_by(tables, self.file(number)) if not why else self.own
        except TaskError as error:  # of a search: no criterion with a weight, say
            if number == 0:
                raise
            why = str(error)
        if why:
            self.tried.append(TriedRubric(number, how, (), (), error=why))
            return
        said = tuple(changes(self.own.rubric, task.rubric))
        made = TriedRubric(number, how, said, tuple(tables), task.rubric.digest())
        try:
            pulled = self._pulled(task, self.config.seed, SPLIT, told)
        except TaskError as error:
            if number == 0 or not _of_criterion(error):
                raise
            self.tried.append(replace(made, error=f"{error}: a run under this rubric ends there"))
            return
        self.pulled[number], after = pulled, pulled.found
        kept = sum(record.accepted for record in pulled.rounds)
        failures = after.policy_failures
        self.tried.append(replace(made, gold=after.gold, kept=kept, policy_failures=failures, error=pulled.error))

    def _proposed(self, number: int, told: Progress) -> tuple[How, list[dict[str, Any]], str]:
        """(how, tables, why there are none)."""
        if number == 0:
            return "own", list(map(dict, self.tables)), ""
        if self.proposer is not None and number <= self.plan.designs:
            told.update(0, 1, "the proposer designs it")
            designer = Designer(self.proposer, self.own, self.budget, self.folder, self.config.seed, self.engine)
            tables, why = designer.design(number, self.tried, self._rollouts(self._best()), self.scored_by)
            return "design", tables, why
        return "search", self._searched(number), ""

    def _searched(self, number: int) -> list[dict[str, Any]]:
        """Weights and gates, from the best of what was no search."""
        root = self.tried[self._best([t.number for t in self.tried if t.how != "search" and t.number in self.pulled])]
        rubric = self.scored_by(root.tables, self.file(root.number)).rubric
        known = [(rubric_space.point(rubric), root.gold or 0.0)]
        for earlier in self.tried:
            if earlier.how == "search" and earlier.gold is not None:
                known.append((rubric_space.point_of(earlier.tables, root.tables), earlier.gold))
        seed = derive_seed(self.config.seed, number)
        return rubric_space.at(root.tables, rubric_space.proposal(rubric, known, self.config.sampler, seed))

    def scored_by(self, tables: Tables, file: Path) -> Task:
        """The task under these tables, which are written and read back as any rubric's file. Raises TaskError."""
        file.parent.mkdir(exist_ok=True)
        write_tables(tables, file)
        task = replace(self.seen, rubric=load_rubric(file, self.task))
        task = with_judge(task, self.config.judge.model)
        open_judges(task, self.bench)
        return task

    def file(self, which: int | str) -> Path:
        return self.folder / "rubrics" / f"{which}.yaml"

    @cached_property
    def own(self) -> Task:
        return self.scored_by(self.tables, self.file(0))

    def _best(self, among: Sequence[int] = ()) -> int:
        """By gold over the examples that got a value under every rubric: no rubric gains by those that it lost."""
        numbers = among or list(self.pulled)
        means = zip(numbers, shared_means([self.pulled[n].found.golds for n in numbers]), strict=True)
        return max(means, key=lambda found: (found[1], -found[0]))[0]

    def _rollouts(self, number: int) -> Sequence[SampledRollout]:
        """Those of the tuning split after the pulls under a rubric that was tried."""
        task = self.scored_by(self.tried[number].tables, self.file("best"))
        return self._evaluator(task, self.config.seed).rollouts(self.pulled[number].candidate, SPLIT)

    # --- pulls -------------------------------------------------------------------------------------

    def _evaluator(self, task: Task, seed: int) -> Evaluator:
        return Evaluator.of(task, self.engine, self.stored, seed, len(task.watched[SPLIT]))

    def _base(self, split: str) -> Evaluation:
        return self._evaluator(self.own, self.config.seed)(self.own.base_candidate(), split, budget=self.budget)

    def _pulled(self, task: Task, seed: int, split: str, told: Progress) -> _Pulled:
        """The schedule's rounds under the task's rubric, and what they made on a split.

        A stored round is charged like one that is run. Where a pull fails, because all rewards are alike, say, or one
        passes what a round may cost, its parent stays.
        """
        evaluator, base, budget = self._evaluator(task, seed), task.base_candidate(), self.budget
        size, total = len(task.dev), len(task.examples(split))
        evaluator(base, budget=budget, on_done=lambda done: told.update(done, size, "base on dev"))
        rounds, error = list[RoundRecord](), ""

        def on_round(index: int, record: RoundRecord, reused: bool) -> bool:
            rounds.append(record)
            if reused:
                budget.charge(record.cost)
            return True

        try:
            alternate(
                base, fixed(parse_schedule(self.plan.schedule)), self.levers(self.config.prompt, self.config.weights),
                evaluator, self.rounds, budget=budget, round_caps=self.config.round_budget, on_round=on_round,
                progress=told,
            )  # fmt: skip
        except BudgetExhausted as capped:
            if capped.ledger is budget:
                raise
            error = f"round_{capped}"  # a cap on each round: other rubrics may fit
        except LeverError as failed:
            error = str(failed)
        last = rounds[-1].kept if rounds else base
        found = evaluator(last, split, budget=budget, on_done=lambda done: told.update(done, total, f"on {split}"))
        return _Pulled(rounds, last, found, error)

    def _confirmed(self, found: Tuning) -> Tuning:
        """Own and tuned once more, with seeds that chose nothing, read on test."""
        runs: dict[str, list[Sequence[float | None]]] = {"own": [], "tuned": []}
        tasks = {
            "own": self.own,
            "tuned": self.scored_by(found.tuned.tables, self.file(found.best)),
        }
        if not self.plan.seeds:
            return found
        try:
            base = self._base("test")
            for place in range(1, self.plan.seeds + 1):
                pair = {}
                for name, task in tasks.items():
                    told = Staged(self.progress, f"{name} rubric, fresh seed {place} of {self.plan.seeds}")
                    pulled = self._pulled(task, self.config.seed + place, "test", told)
                    pair[name] = pulled.found.golds
                    if pulled.error:
                        self.notes.append(f"{name} rubric, fresh seed {place}: a pull failed: {pulled.error}.")
                for name, golds in pair.items():
                    runs[name].append(golds)
        except (BudgetExhausted, TaskError) as error:
            if isinstance(error, TaskError) and not _of_criterion(error):
                raise
            self.notes.append(f"Fresh seeds end at {len(runs['tuned'])} of {self.plan.seeds}: {error}.")
        if not runs["tuned"]:
            return found
        read: dict[str, list[Sequence[float | None]]] = {"base": [base.golds] * len(runs["own"]), **runs}
        test = {name: estimate for name, golds in read.items() if (estimate := mean_over_seeds(golds)) is not None}
        bought = seeds_effect([(1, runs["tuned"]), (-1, runs["own"])])
        return replace(found, seeds=len(runs["tuned"]), test=test, bought=bought)
