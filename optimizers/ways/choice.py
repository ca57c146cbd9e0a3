"""Way "choice": among the task's wordings and demos, by random search on train. The default; needs no proposer.

Departures from DSPy's BootstrapFewShotWithRandomSearch (way "fewshot"): wordings are searched together with demos;
demos come from train examples on which no combination is scored, so that none is scored on an example that it shows;
and scoring is by successive halving: all on ``screen`` examples, the best ``finalists`` and the parent on ``examples``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from colever.config import PromptSettings
from colever.optimizers.demos import Demo, Demos, bootstrapped_demos, draw, labelled_demos
from colever.optimizers.ways.way import Calls, Found, Prompts, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate, PredictorPrompt


@dataclass(frozen=True)
class Combination:
    """One set of prompts, said in words, with its mean rubric score on the screen and, for finalists, on all."""

    prompts: Prompts
    words: str
    screen: float = float("nan")
    final: float | None = None


class Choice:
    """A choice among offered wordings and demos for each predictor."""

    needs_proposer = False

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        """Whatever there is to choose among is enough: the parent is always among it."""

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """Every combination on the screen, two harvests of demos, and the finalists, none of them a repetition."""
        s, scored = settings, len(rows.scored)
        screened = combinations(s, task, parent) * min(s.screen, scored)
        return Calls(screened + 2 * len(rows.shown) * (s.demos > 0) + (s.finalists + 1) * scored)

    def search(self, pulling: Pulling) -> Found:
        """Wordings alone and together, demos alone and with them, random combinations; then the finalists."""
        return _Search(pulling).run()


def combinations(settings: PromptSettings, task: Task, parent: Candidate) -> int:
    """At most so many are tried: the parent, each wording alone, the best together, demos, and random ones."""
    wordings = sum(len(w) - 1 for w in wordings_of(parent, task).values())
    return 1 + wordings + settings.candidates + (6 if settings.demos else 0)


def wordings_of(parent: Candidate, task: Task) -> dict[str, list[str]]:
    """Per predictor: the parent's wording first, then the offered ones that differ from it."""
    now = {name: prompt.instructions for name, prompt in parent.prompts.items()}
    return {
        name: [text, *dict.fromkeys(t for t in task.instructions.get(name, ()) if t != text)]
        for name, text in now.items()
    }


def with_part(prompts: Prompts, name: str, text: str | None, demos: tuple[Demo, ...] | None) -> Prompts:
    """The prompts with one predictor's wording or demos replaced (None leaves them)."""
    old = prompts[name]
    if demos is not None:
        old = replace(old, demos=demos, nearest=0)
    return {**prompts, name: old if text is None else replace(old, instructions=text)}


class _Search:
    """One pull's search; every draw comes from the pull's ``rng``."""

    def __init__(self, pulling: Pulling) -> None:
        self.pulling, self.settings, self.rng = pulling, pulling.settings, pulling.rng
        self.parent: Prompts = pulling.parent.prompts
        self.program = pulling.task.program()
        self.outputs = {name: list(p.signature.output_fields) for name, p in self.program.named_predictors()}
        self.wordings = wordings_of(pulling.parent, pulling.task)
        self.tried: list[Combination] = []

    def run(self) -> Found:
        alone = [
            (with_part(self.parent, name, text, None), f"{name}: wording {number}")
            for name, wordings in self.wordings.items()
            for number, text in enumerate(wordings[1:], 1)
        ]
        self._try_all([(self.parent, "as it was"), *alone])
        best = self._best_wordings()
        self._try_all([(best, "the best wordings together")])
        pools = self._pools() if self.settings.demos else {}
        together = []
        for source, pool in pools.items():
            together.append((self._with_demos(self.parent, pool), f"demos, {source}"))
            together.append((self._with_demos(best, pool), f"the best wordings with demos, {source}"))
        self._try_all(together)
        ranked = self._ranked_wordings()
        self._try_all([self._random(ranked, pools) for _ in range(self.settings.candidates)])
        chosen = self._final()
        return Found(
            chosen.prompts,
            chosen.words,
            [{"what": c.words, "screen": c.screen, "final": c.final} for c in self.tried],
            {
                "train/screen": [(i, c.screen) for i, c in enumerate(self.tried)],
                "train/final": [(i, c.final) for i, c in enumerate(self.tried) if c.final is not None],
            },
        )

    # --- what is tried -----------------------------------------------------------------------------

    def _ranked_wordings(self) -> dict[str, list[tuple[int, str]]]:
        """Per predictor the parent's wording and the two that did best alone, with their numbers."""
        alone = {c.words: c.screen for c in self.tried}
        ranked = {}
        for name, wordings in self.wordings.items():
            numbered = list(enumerate(wordings))
            best = sorted(numbered[1:], key=lambda item: -alone.get(f"{name}: wording {item[0]}", 0.0))
            ranked[name] = [numbered[0], *best[:2]]
        return ranked

    def _pools(self) -> dict[str, Demos]:
        """Demos by source: labelled ones, and those bootstrapped by the two best combinations so far."""
        pools: dict[str, Demos] = {}
        shown = self.pulling.rows.shown
        labelled = labelled_demos(self.program, [example for _, example in shown])
        if any(labelled.values()):
            pools["labelled"] = labelled
        for combination in sorted(self.tried, key=lambda c: -c.screen)[:2]:
            rollouts = self.pulling.rehearsal.run(combination.prompts, [i for i, _ in shown])
            if demos := bootstrapped_demos(rollouts, self.settings.threshold):
                pools[f"bootstrapped from [{combination.words}]"] = demos
        return pools

    def _best_wordings(self) -> Prompts:
        """Each predictor's wording that did best alone, where it did better than the parent's."""
        alone, prompts = {c.words: c.screen for c in self.tried}, self.parent
        for name, wordings in self.wordings.items():
            scores = [alone["as it was"], *(alone.get(f"{name}: wording {i}", 0.0) for i in range(1, len(wordings)))]
            prompts = with_part(prompts, name, wordings[scores.index(max(scores))], None)
        return prompts

    def _with_demos(self, prompts: Prompts, pool: Demos) -> Prompts:
        """As many demos as may be, for every predictor that the pool has some for."""
        for name, rows in pool.items():
            if rows:
                prompts = with_part(prompts, name, None, draw(rows, self.outputs[name], self.settings.demos, self.rng))
        return prompts

    def _random(
        self, wordings: Mapping[str, Sequence[tuple[int, str]]], pools: Mapping[str, Demos]
    ) -> tuple[Prompts, str]:
        prompts, words = self.parent, []
        for name in self.outputs:
            number, text = self.rng.choice(wordings[name])
            sources = [source for source, pool in pools.items() if pool.get(name)]
            source = self.rng.choice(["", *sources])
            size = self.rng.choice(sizes(self.settings.demos))
            demos = draw(pools[source][name], self.outputs[name], size, self.rng) if source else None
            prompts = with_part(prompts, name, text, demos)
            words.append(f"{name}: wording {number}" + (f", {len(demos)} demos {source}" if demos else ""))
        return prompts, "; ".join(words)

    # --- how it is scored --------------------------------------------------------------------------

    def _try_all(self, combinations: Sequence[tuple[Prompts, str]]) -> None:
        """Score them on the screen as one batch, each once."""
        rehearsal, screen = self.pulling.rehearsal, self.pulling.scored[: self.settings.screen]
        rehearsal.run_all([prompts for prompts, _ in combinations], screen)
        tried = {Candidate(c.prompts).digest for c in self.tried}
        for prompts, words in combinations:
            if (digest := Candidate(prompts).digest) not in tried:
                tried.add(digest)
                self.tried.append(Combination(prompts, words, screen=rehearsal.mean(prompts, screen)))

    def _final(self) -> Combination:
        """The finalists and the parent on all scored examples; a tie goes to the one tried first."""
        order = sorted(range(len(self.tried)), key=lambda i: (-self.tried[i].screen, i))[: self.settings.finalists]
        finalists = sorted({0, *order})
        self.pulling.rehearsal.run_all([self.tried[i].prompts for i in finalists], self.pulling.scored)
        for i in finalists:
            score = self.pulling.rehearsal.mean(self.tried[i].prompts, self.pulling.scored)
            self.tried[i] = replace(self.tried[i], final=score)
        return max((self.tried[i] for i in finalists), key=lambda c: c.final or 0.0)


def sizes(most: int) -> list[int]:
    """2, 4, 8 … up to ``most``, which is always one of them."""
    return [size for size in (2, 4, 8, 16, 32) if size < most] + [max(1, most)]


WAY = Choice()
__all__ = ["WAY", "Choice", "Combination", "PredictorPrompt", "combinations", "sizes", "with_part", "wordings_of"]
