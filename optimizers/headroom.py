"""Whether prompts can gain anything here, asked before money is spent: a few candidates on a few dozen train examples.

The candidates are the task's wordings, demos drawn from labelled examples, and, where those are few, instructions that
the proposer writes in one call per predictor. The gain is cross-fitted: the best candidate of one half of the examples
is compared with the parent on the other half, and the other way round, so that being chosen earns nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dspy
from dspy.teleprompt.copro_optimizer import BasicGenerateInstruction
from dspy.utils.exceptions import AdapterParseError

from colever.optimizers.demos import draw, labelled_demos
from colever.optimizers.statistics import paired_effect
from colever.optimizers.ways.choice import sizes, with_part, wordings_of
from colever.optimizers.ways.way import Prompts, Pulling
from colever.types import Candidate

if TYPE_CHECKING:
    from colever.reported import Estimate

FEW = 10  # candidates without a proposer below which it is asked for more


@dataclass(frozen=True)
class Headroom:
    """The verdict: ``go`` unless a gain of the asked size is ruled out, by the 95 % interval over examples."""

    verdict: str
    gain: float
    low: float
    high: float
    candidates: int
    examples: int
    rollouts: int

    @property
    def go(self) -> bool:
        return self.verdict == "go"

    @property
    def said(self) -> str:
        """In one line."""
        return (
            f"the best of {self.candidates} candidates gains {100 * self.gain:+.1f} "
            f"[{100 * self.low:.1f}, {100 * self.high:.1f}] points on {self.examples} train examples"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def headroom(pulling: Pulling) -> Headroom | None:
    """Run the test; None where there is nothing to try it with."""
    settings, rehearsal = pulling.settings, pulling.rehearsal
    candidates = _candidates(pulling)
    examples = pulling.scored[: settings.headroom_examples]
    if not candidates or len(examples) < 4:
        return None
    parent = pulling.parent.prompts
    before = rehearsal.distinct
    pairs = [(prompts, example) for prompts in [parent, *candidates] for example in examples]
    totals = [r.total for r in rehearsal.run_each(pairs)]
    n = len(examples)
    rows = [totals[i * n : (i + 1) * n] for i in range(1 + len(candidates))]
    effect = cross_fitted(rows[0], rows[1:])
    return Headroom(
        "go" if effect.high >= settings.headroom_gain else "no-go",
        effect.value,
        effect.low,
        effect.high,
        len(candidates),
        n,
        rehearsal.distinct - before,
    )


def cross_fitted(parent: list[float], candidates: list[list[float]]) -> Estimate:
    """What the best candidate gains, each half of the examples judged by the choice of the other half."""
    n = len(parent)
    halves = [range(0, n, 2), range(1, n, 2)]
    chosen = [0.0] * n
    for judging, judged in (halves, halves[::-1]):
        best = max(candidates, key=lambda row: sum(row[i] for i in judging))
        for i in judged:
            chosen[i] = best[i]
    effect = paired_effect([(1, chosen), (-1, parent)])
    assert effect is not None
    return effect


def wanted(parent: Candidate) -> int:
    """Instructions that the proposer is asked for, per predictor; DSPy takes more than one alone."""
    return max(2, FEW // len(parent.prompts))


def _candidates(pulling: Pulling) -> list[Prompts]:
    """Distinct ones other than the parent, at most so many as are asked for."""
    parent, settings = pulling.parent.prompts, pulling.settings
    found: dict[str, Prompts] = {}

    def add(prompts: Prompts) -> None:
        if prompts != parent and len(found) < settings.headroom_candidates:
            found.setdefault(Candidate(prompts).digest, prompts)

    for name, wordings in wordings_of(pulling.parent, pulling.task).items():
        for text in wordings[1:]:
            add(with_part(parent, name, text, None))
    program = pulling.task.program()
    labelled = labelled_demos(program, pulling.examples("shown"))
    if settings.demos and any(labelled.values()):
        outputs = {name: list(p.signature.output_fields) for name, p in program.named_predictors()}
        for size in sizes(settings.demos):
            for _ in range(2):
                prompts = parent
                for name, rows in labelled.items():
                    if rows:
                        prompts = with_part(prompts, name, None, draw(rows, outputs[name], size, pulling.rng))
                add(prompts)
    if len(found) < FEW and pulling.proposer is not None:
        for name, prompt in parent.items():
            for text in _written(pulling.proposer, prompt.instructions, wanted(pulling.parent)):
                add(with_part(parent, name, text, None))
    return list(found.values())


def _written(proposer: dspy.LM, instructions: str, count: int) -> list[str]:
    """So many other instructions, by COPRO's own question; fewer where replies can't be read."""
    try:
        with dspy.context(lm=proposer, trace=None):
            made = dspy.Predict(BasicGenerateInstruction, n=count, temperature=1.0)(basic_instruction=instructions)
    except AdapterParseError:
        return []
    return [text.strip() for text in made.completions.proposed_instruction if text and text.strip()]
