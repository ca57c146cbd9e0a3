"""The prompt lever: one pull by whichever way the settings name, on train and the rubric alone.

Knows what every way has in common: which train examples it may use, that nothing is spent before its needs are met,
that what DSPy's loops swallowed is raised, and what a pull says of itself. Each way is a file in ``optimizers/ways``.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from colever.config import PromptSettings
from colever.errors import ColeverError, TaskError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.headroom import Headroom, headroom, wanted
from colever.optimizers.lever import Progress, Pull
from colever.optimizers.rehearsal import Rehearsal, RunAhead, distinct_rows
from colever.optimizers.ways import way_of
from colever.optimizers.ways.bootstrap import ONE_ERROR
from colever.optimizers.ways.teleprompter import UsersTeleprompter
from colever.optimizers.ways.way import Calls, Found, Pulling, TrainRows
from colever.types import Candidate, LeverName

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task


class PullSettings(PromptSettings):
    """A pull's settings with what else its result depends on: who writes its prompts, the code of a user's way."""

    proposer: dict[str, str | float | None] | None = None
    optimizer: str | None = None  # digest


class PromptLever:
    """One pull: instructions and demos for each predictor, the weights as they are. ``proposer`` writes prompts.

    Raises UsageError for an unknown way, and for one that needs a proposer where there is none.
    """

    name: LeverName = "prompt"

    def __init__(self, settings: PromptSettings, proposer: dspy.LM | None = None) -> None:
        self.settings, self.proposer = settings, proposer
        self.way = way_of(settings.way)
        asked = {"auto": self.way.needs_proposer, "on": True, "off": False}
        self._tests_headroom = asked[settings.headroom]
        if self.way.needs_proposer and proposer is None:
            raise UsageError(
                f"prompt.way={settings.way} has prompts written, and there is no model to write them; accepted: "
                "--prompt-model NAME (a dspy.LM name, an address, or policy), or a way that needs none: choice, "
                "instructions, fewshot, knn"
            )
        written, code = None, self.way.digest if isinstance(self.way, UsersTeleprompter) else None
        if proposer is not None and (self.way.needs_proposer or self._tests_headroom):
            kept = {key: proposer.kwargs.get(key) for key in ("temperature", "max_tokens")}
            written = {"model": proposer.model, "digest": getattr(proposer.engine, "digest", None), **kept}
        if written or code:
            self.settings = PullSettings(**settings.model_dump(), proposer=written, optimizer=code)

    def planned(self, candidate: Candidate, task: Task) -> int:
        return self.calls(candidate, task).rollouts

    def calls(self, candidate: Candidate, task: Task) -> Calls:
        """What a pull asks for at most, its headroom test included; see ``Way.planned``. Raises UsageError."""
        rows = train_rows(self.settings, task, random.Random(0))
        self._check(candidate, task, rows)
        made = self.way.planned(self.settings, task, candidate, rows)
        if not self._tests_headroom:
            return made
        most = min(self.settings.headroom_examples, len(rows.scored)) * (1 + self.settings.headroom_candidates)
        written = len(candidate.prompts) * wanted(candidate) if self.proposer is not None else 0
        return Calls(made.rollouts + most, made.proposer_calls + written)

    def improve(
        self,
        candidate: Candidate,
        task: Task,
        engine: TransformersEngine,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress,
    ) -> Pull:
        """The way's choice, where it did no worse on train than the parent; the weights stay the parent's."""
        task = replace(task, gold=None)  # a lever sees the rubric only
        rng = random.Random(seed)
        rows = train_rows(self.settings, task, rng)
        self._check(candidate, task, rows)
        planned = self.calls(candidate, task).rollouts
        rehearsal = Rehearsal(candidate, task, engine, budget, seed, workdir, progress, planned)
        proposer = None
        if self.proposer is not None:
            from colever.optimizers.proposer import counted

            proposer = counted(self.proposer, budget, workdir / "proposals.jsonl", seed=seed, policy=engine)
        pulling = Pulling(candidate, task, self.settings, rows, rehearsal, proposer, rng, seed)
        with _swallowed_nothing(rehearsal, proposer), _quietly(workdir / "optimizer.log"):
            tested = self._headroom(pulling)
            stands = Found(candidate.prompts, f"no headroom: {tested.said}" if tested else "as it was")
            with dspy.context(
                lm=rehearsal.stand_in(), trace=None, callbacks=[RunAhead(rehearsal)], max_errors=ONE_ERROR
            ):
                found = stands if tested and not tested.go else self.way.search(pulling)
            scores = self._compare(pulling, found)
        if scores["child"] < scores["parent"]:
            found = replace(found, prompts=candidate.prompts, words=f"as it was (better than {found.words})")
            scores = {**scores, "child": scores["parent"]}
        return Pull(
            replace(candidate, prompts=dict(found.prompts)),
            found.curves or {"train/final": [(0, scores["parent"]), (1, scores["child"])]},
            {
                "way": self.settings.way,
                "chosen": found.words,
                "tried": [dict(row) for row in found.tried],
                "selected": {**scores, "examples": len(rows.scored)},
                "headroom": tested.to_json() if tested else None,
                "calls": {
                    "rollouts": rehearsal.distinct,
                    "repeated": rehearsal.asked - rehearsal.distinct,
                    "proposer_calls": budget.spent.proposer_calls,
                },
            },
        )

    # --- before and after the search ----------------------------------------------------------------

    def _check(self, candidate: Candidate, task: Task, rows: TrainRows) -> None:
        """Raises UsageError or TaskError before anything is spent."""
        names = list(candidate.prompts)
        if unknown := sorted(set(task.instructions) - set(names)):
            raise TaskError(
                f"task {task.name!r}: instructions are offered for {unknown[0]!r}, which is no predictor of the "
                f"program; accepted: {', '.join(names)}"
            )
        if strange := [c for c in task.rubric.criteria if c.predictor and c.predictor not in names]:
            raise TaskError(
                f"task {task.name!r}: criterion {strange[0].name!r} speaks of {strange[0].predictor!r}, which is no "
                f"predictor of the program; accepted: {', '.join(names)}"
            )
        self.way.check(self.settings, task, rows)

    def _headroom(self, pulling: Pulling) -> Headroom | None:
        return headroom(pulling) if self._tests_headroom else None

    @staticmethod
    def _compare(pulling: Pulling, found: Found) -> dict[str, float]:
        """Parent and choice on the examples that candidates competed on: most of it was run before."""
        rehearsal, scored = pulling.rehearsal, pulling.scored
        same = Candidate(found.prompts).digest == Candidate(pulling.parent.prompts).digest
        parent = rehearsal.mean(pulling.parent.prompts, scored)
        return {"parent": parent, "child": parent if same else rehearsal.mean(found.prompts, scored)}


def train_rows(settings: PromptSettings, task: Task, rng: random.Random) -> TrainRows:
    """The train examples in random order: ``prompt.examples`` to compete on, those after them to make demos of.

    Of examples with equal inputs the first counts. At most two thirds are competed on.
    """
    rows = distinct_rows(task)
    rng.shuffle(rows)
    cut = max(1, min(settings.examples, (2 * len(rows)) // 3))
    return TrainRows(rows[cut : cut + max(settings.screen, 8 * settings.demos)] or rows, rows[:cut])


@contextlib.contextmanager
def _swallowed_nothing(rehearsal: Rehearsal, proposer: Any) -> Iterator[None]:
    """What failed in a rollout or at the proposer is what the pull fails with, whatever DSPy's loops made of it."""
    try:
        yield
    except BaseException as error:  # an interrupt too: threads that still wait are told, then it goes on up
        rehearsal.failed = rehearsal.failed or error  # no thread that is still at it starts another batch
        first = _first(rehearsal, proposer)
        if isinstance(error, ColeverError | KeyboardInterrupt) or first is None or first is error:
            raise
        raise first from error
    if (first := _first(rehearsal, proposer)) is not None:
        raise first


def _first(rehearsal: Rehearsal, proposer: Any) -> BaseException | None:
    at_proposer = getattr(getattr(proposer, "engine", None), "failed", None)
    return at_proposer or rehearsal.failed


@contextlib.contextmanager
def _quietly(log: Path) -> Iterator[None]:
    """What DSPy's optimizers print, draw and log goes into a file beside the pull's journals."""
    chatter = logging.getLogger("dspy")
    handlers, level = chatter.handlers, chatter.level
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        chatter.handlers = [logging.FileHandler(log)]
        chatter.setLevel(logging.INFO)
        try:
            yield
        finally:
            for handler in chatter.handlers:
                handler.close()  # it opens again for a thread that logs late
            chatter.handlers = handlers
            chatter.setLevel(level)
