"""The prompt lever, way "choice": among the task's wordings and demos, by random search on train.

Knows the train split and the rubric; knows nothing of dev, test or gold. Departures from DSPy's
BootstrapFewShotWithRandomSearch: wordings are searched together with demos; demos come from train examples on which
no combination is scored, so that none is scored on an example that it shows; and scoring is by successive halving
(all on ``screen`` examples, the best ``finalists`` and the parent on ``examples``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colever.config import PromptSettings
from colever.errors import TaskError
from colever.optimizers.budget import Budget
from colever.optimizers.demos import Demo, Demos, Harvest, draw, labelled_demos, recorded
from colever.optimizers.evaluate import metered, run_candidate
from colever.optimizers.lever import NullProgress, Progress, Pull
from colever.types import Candidate, LeverName, PredictorPrompt

if TYPE_CHECKING:
    import dspy

    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task

Examples = Sequence[tuple[str, "dspy.Example"]]
Prompts = Mapping[str, PredictorPrompt]


@dataclass(frozen=True)
class Combination:
    """One set of prompts, said in words, with its mean rubric score on the screen and, for finalists, on all."""

    prompts: Prompts
    words: str
    screen: float = float("nan")
    final: float | None = None


class PromptLever:
    """A choice among offered wordings and demos for each predictor."""

    name: LeverName = "prompt"

    def __init__(self, settings: PromptSettings) -> None:
        self.settings = settings

    def planned(self, candidate: Candidate, task: Task) -> int:
        """Every combination on the screen, two harvests of demos, and the finalists, none of them a repetition."""
        return _Search(self.settings, candidate, task, None, Budget(), 0, NullProgress()).rollouts()  # type: ignore[arg-type]

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
        """The best of the parent's prompts and those tried; the weights stay the parent's."""
        search = _Search(self.settings, candidate, task, engine, budget, seed, progress)
        best, tried = search.run()
        table = [{"what": c.words, "screen": c.screen, "final": c.final} for c in tried]
        curve = [(i, c.screen) for i, c in enumerate(tried)]
        finals = [(i, c.final) for i, c in enumerate(tried) if c.final is not None]
        return Pull(
            replace(candidate, prompts=dict(best.prompts)),
            {"train/screen": curve, "train/final": finals},
            {"chosen": best.words, "tried": table},
        )


class _Search:
    """One pull's search; every draw comes from ``seed``."""

    def __init__(
        self,
        settings: PromptSettings,
        parent: Candidate,
        task: Task,
        engine: TransformersEngine,
        budget: Budget,
        seed: int,
        progress: Progress,
    ) -> None:
        self.settings, self.parent = settings, parent
        self.task = replace(task, gold=None)  # a lever sees the rubric only
        self.engine, self.budget, self.seed, self.progress = engine, budget, seed, progress
        self.rng = random.Random(seed)
        program = task.program()
        self.outputs = {name: list(p.signature.output_fields) for name, p in program.named_predictors()}
        if unknown := set(task.instructions) - set(self.outputs):
            raise TaskError(
                f"task {task.name!r}: instructions are offered for {sorted(unknown)[0]!r}, which is no predictor "
                f"of the program; accepted: {', '.join(self.outputs)}"
            )
        rows = task.examples("train")
        self.rng.shuffle(rows)
        cut = max(1, min(settings.examples, (2 * len(rows)) // 3))
        self.scored, self.shown = rows[:cut], rows[cut : cut + max(settings.screen, 8 * settings.demos)] or rows
        self.program = program
        self.tried: list[Combination] = []

    def run(self) -> tuple[Combination, list[Combination]]:
        """Wordings alone and together, demos alone and with them, random combinations; then the finalists."""
        self._try(self.parent.prompts, "as it was")
        for name, wordings in self._wordings().items():
            for number, text in enumerate(wordings[1:], 1):
                self._try(self._with(self.parent.prompts, name, text, None), f"{name}: wording {number}")
        best = self._best_wordings()
        self._try(best, "the best wordings together")
        pools = self._pools() if self.settings.demos else {}
        for source, pool in pools.items():
            self._try(self._with_demos(self.parent.prompts, pool), f"demos, {source}")
            self._try(self._with_demos(best, pool), f"the best wordings with demos, {source}")
        ranked = self._ranked_wordings()
        for _ in range(self.settings.candidates):
            self._try(*self._random(ranked, pools))
        return self._final(), self.tried

    # --- what is tried -----------------------------------------------------------------------------

    def _wordings(self) -> dict[str, list[str]]:
        """Per predictor: the parent's wording first, then the offered ones that differ from it."""
        now = {name: prompt.instructions for name, prompt in self.parent.prompts.items()}
        return {
            name: [text, *dict.fromkeys(t for t in self.task.instructions.get(name, ()) if t != text)]
            for name, text in now.items()
        }

    def _ranked_wordings(self) -> dict[str, list[tuple[int, str]]]:
        """Per predictor the parent's wording and the two that did best alone, with their numbers."""
        alone = {c.words: c.screen for c in self.tried}
        ranked = {}
        for name, wordings in self._wordings().items():
            numbered = list(enumerate(wordings))
            best = sorted(numbered[1:], key=lambda item: -alone.get(f"{name}: wording {item[0]}", 0.0))
            ranked[name] = [numbered[0], *best[:2]]
        return ranked

    def _pools(self) -> dict[str, Demos]:
        """Demos by source: labelled ones, and those bootstrapped by the two best combinations so far."""
        pools: dict[str, Demos] = {}
        labelled = labelled_demos(self.program, [example for _, example in self.shown])
        if any(labelled.values()):
            pools["labelled"] = labelled
        for combination in sorted(self.tried, key=lambda c: -c.screen)[:2]:
            harvest = Harvest(self.task.score, self.settings.threshold)
            self._run(combination.prompts, self.shown, harvest)
            if demos := harvest.demos():
                pools[f"bootstrapped from [{combination.words}]"] = demos
        return pools

    def _best_wordings(self) -> Prompts:
        """Each predictor's wording that did best alone, where it did better than the parent's."""
        alone, prompts = {c.words: c.screen for c in self.tried}, self.parent.prompts
        for name, wordings in self._wordings().items():
            scores = [alone["as it was"], *(alone.get(f"{name}: wording {i}", 0.0) for i in range(1, len(wordings)))]
            prompts = self._with(prompts, name, wordings[scores.index(max(scores))], None)
        return prompts

    def _with_demos(self, prompts: Prompts, pool: Demos) -> Prompts:
        """As many demos as may be, for every predictor that the pool has some for."""
        for name, rows in pool.items():
            if rows:
                prompts = self._with(prompts, name, None, draw(rows, self.outputs[name], self.settings.demos, self.rng))
        return prompts

    def _random(
        self, wordings: Mapping[str, Sequence[tuple[int, str]]], pools: Mapping[str, Demos]
    ) -> tuple[Prompts, str]:
        prompts, words = self.parent.prompts, []
        for name in self.outputs:
            number, text = self.rng.choice(wordings[name])
            sources = [source for source, pool in pools.items() if pool.get(name)]
            source = self.rng.choice(["", *sources])
            size = self.rng.choice(_sizes(self.settings.demos))
            demos = draw(pools[source][name], self.outputs[name], size, self.rng) if source else None
            prompts = self._with(prompts, name, text, demos)
            words.append(f"{name}: wording {number}" + (f", {len(demos)} demos {source}" if demos else ""))
        return prompts, "; ".join(words)

    def _with(self, prompts: Prompts, name: str, text: str | None, demos: tuple[Demo, ...] | None) -> Prompts:
        """The prompts with one predictor's wording or demos replaced (None leaves them)."""
        old = prompts[name]
        new = PredictorPrompt(old.instructions if text is None else text, old.demos if demos is None else demos)
        return {**prompts, name: new}

    # --- how it is scored --------------------------------------------------------------------------

    def _try(self, prompts: Prompts, words: str) -> None:
        """Score a combination on the screen, unless the same prompts were tried."""
        digest = Candidate(prompts).digest
        if any(Candidate(c.prompts).digest == digest for c in self.tried):
            return
        score = self._run(prompts, self.scored[: self.settings.screen], self.task.score)
        self.tried.append(Combination(prompts, words, screen=score))
        self.progress.update(
            len(self.tried), self._planned(), f"prompts tried, best {self._best_screen():.1%} on train"
        )

    def _final(self) -> Combination:
        """The finalists and the parent on all scored examples; a tie goes to the one tried first."""
        order = sorted(range(len(self.tried)), key=lambda i: (-self.tried[i].screen, i))[: self.settings.finalists]
        for done, i in enumerate(finalists := sorted({0, *order})):
            score = self._run(self.tried[i].prompts, self.scored, self.task.score)
            self.tried[i] = replace(self.tried[i], final=score)
            self.progress.update(done + 1, len(finalists), "finalists on train")
        return max((self.tried[i] for i in finalists), key=lambda c: c.final or 0.0)

    def _run(self, prompts: Prompts, examples: Examples, score: Any) -> float:
        """Mean rubric score on train examples; a rollout without a score is left out."""
        program = (lambda: recorded(self.task.program())) if isinstance(score, Harvest) else None
        candidate = replace(self.parent, prompts=prompts)
        with metered(self.engine, len(examples), self.budget):
            rollouts = run_candidate(
                candidate, self.task, self.engine, examples, split="train", seed=self.seed, score=score, program=program
            )
        known = [r.score.total for r in rollouts if r.score is not None]
        return sum(known) / len(known) if known else 0.0

    def _planned(self) -> int:
        wordings = sum(len(w) - 1 for w in self._wordings().values())
        return max(len(self.tried), 1 + wordings + self.settings.candidates + (6 if self.settings.demos else 0))

    def rollouts(self) -> int:
        """At most so many."""
        s = self.settings
        screened = self._planned() * min(s.screen, len(self.scored))
        return screened + 2 * len(self.shown) * (s.demos > 0) + (s.finalists + 1) * len(self.scored)

    def _best_screen(self) -> float:
        return max(c.screen for c in self.tried)


def _sizes(most: int) -> list[int]:
    """2, 4, 8 … up to ``most``, which is always one of them."""
    return [size for size in (2, 4, 8, 16, 32) if size < most] + [max(1, most)]
