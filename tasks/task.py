"""What to get right: a program factory, three splits of examples, a rubric, and the truth that no lever reads.

Knows nothing of models, levers or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from colever.errors import InfrastructureError, TaskError
from colever.split import Split
from colever.tasks.rubric import Rubric
from colever.tasks.source import code_digest, contents_digest, source_digest
from colever.types import Candidate, PredictorPrompt, Score, Step, digest_of

SPLITS = ("train", "dev", "test")
Gold = Callable[[dspy.Example, dspy.Prediction], float | bool]
Labelled = Callable[[dspy.Example], dspy.Prediction]


@dataclass(frozen=True)
class Task:
    """What a user defines. ``program()`` returns a fresh ``dspy.Module``.

    ``train / dev / test`` are lists of ``dspy.Example`` with inputs marked (``.with_inputs``); an example's id is
    its field ``id`` where it has one, else ``<split>-<row>``. ``gold`` is a truth metric in [0, 1] that no lever,
    pruning or objective reads, nor acceptance unless ``on_hacking=stop``. ``instructions`` offers further wordings per
    predictor, ``watched`` further splits that only the report reads. ``max_tokens`` bounds each completion. ``origin``
    says where the rows are from. ``labelled`` says how a right prediction looks, where the example's fields alone do
    not tell: `colever rubric check` scores it, no lever reads it.

    A finished round is reused while the task's digest is the same. The digest sees the examples, the rubric, the
    program with what its attributes hold, the files that define its code and those that they import from beside them,
    and the module-level values that the code names. It does not see what code opens while it runs (files, databases,
    servers) or what a library's object holds (a data frame, a tensor): name such files in ``depends_on``, whose
    contents count too. What the program holds when it is made must be equal in every process, or no round is reused.
    """

    name: str
    program: Callable[[], dspy.Module]
    train: Sequence[dspy.Example]
    dev: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    rubric: Rubric
    gold: Gold | None = None
    target: float = 0.9
    instructions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    watched: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    max_tokens: int = 256
    temperature: float = 0.0  # decoding of every evaluation; 0 = greedy
    depends_on: Sequence[Path | str] = ()
    origin: str = ""
    labelled: Labelled | None = None

    def __post_init__(self) -> None:
        if taken := [split for split in SPLITS if split in self.watched]:
            raise TaskError(
                f"task {self.name!r}: {taken[0]!r} in watched would hide the split of that name; "
                f"accepted: any name but {', '.join(SPLITS)}"
            )

    def examples(self, split: str) -> list[tuple[str, dspy.Example]]:
        """(id, example) pairs of ``train``, ``dev``, ``test`` or a watched split, in order; ids are unique."""
        rows = self.watched[split] if split in self.watched else getattr(self, split)
        return [(str(row.get("id", f"{split}-{i}")), row) for i, row in enumerate(rows)]

    def described(self, split: str) -> Split:
        """A split by name, size and digest, for those that need no examples."""
        rows = self.examples(split)
        fields = tuple(rows[0][1].keys()) if rows else ()
        return Split(split, digest_of([[name, row.toDict()] for name, row in rows]), len(rows), fields)

    def score(self, example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step]) -> Score:
        """The rubric's score with gold attached (gold: TaskError if it raises or leaves [0, 1])."""
        score = self.rubric.score(example, prediction, steps)
        return replace(score, gold=self.gold_of(example, prediction))

    def gold_of(self, example: dspy.Example, prediction: dspy.Prediction) -> float | None:
        """Gold's value; None where the task has none. Raises TaskError if it raises or leaves [0, 1]."""
        if self.gold is None:
            return None
        try:
            gold = float(self.gold(example, prediction))
        except InfrastructureError:
            raise
        except Exception as error:
            raise TaskError(f"gold of task {self.name!r} raised {type(error).__name__}: {error}") from error
        if not 0.0 <= gold <= 1.0:
            raise TaskError(f"gold of task {self.name!r} returned {gold}; accepted: a number in [0, 1] or a bool")
        return gold

    def fail(self, reason: str) -> Score:
        """The score of a policy failure: 0 everywhere, gold included."""
        low = self.rubric.lowest(reason)
        return Score(low.total, low.by_criterion, low.feedback, 0.0 if self.gold is not None else None)

    def base_candidate(self) -> Candidate:
        """The program's own instructions, no demos, the model's own weights."""
        prompts = {name: PredictorPrompt(p.signature.instructions) for name, p in self.program().named_predictors()}
        return Candidate(prompts)

    def digest(self) -> str:
        """Of data, rubric, gold, offered wordings, program, the sources of their code, and ``depends_on``."""
        program = self.program()
        checks = [c.check for c in self.rubric.criteria]
        data: dict[str, Any] = {
            s: [dict(e.toDict()) for _, e in self.examples(s)] for s in (*SPLITS, *sorted(self.watched))
        }
        return digest_of(
            [
                data,
                self.rubric.digest(),
                code_digest(self.gold) if self.gold else None,
                {k: list(v) for k, v in self.instructions.items()},
                source_digest(program, [self.program, *checks, *([self.gold] if self.gold else [])]),
                contents_digest(self.depends_on),
                self.target,
                self.max_tokens,
                self.temperature,
            ]
        )
