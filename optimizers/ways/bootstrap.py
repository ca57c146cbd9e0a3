"""What DSPy's bootstrapping ways have in common: a teacher that has answered before it is asked.

DSPy's ``BootstrapFewShot`` asks its teacher example by example. A teacher that is handed over compiled is used as it
is, so all that it can be asked is run here first, as one batch; DSPy's loop then finds every answer in memory.
"""

from __future__ import annotations

from dataclasses import replace

import dspy
from dspy.teleprompt import LabeledFewShot

from colever.config import PromptSettings
from colever.errors import UsageError
from colever.optimizers.rehearsal import THREADS
from colever.optimizers.ways.way import Prompts, Pulling, TrainRows

ONE_ERROR = 1  # an error in DSPy's loops is the machine's or ours, never the policy's: it ends them


def check_demos(settings: PromptSettings, way: str, rows: TrainRows, most: int | None = None) -> None:
    """Raises UsageError where no demos are allowed, or fewer train examples than demos are there to make them of."""
    demos = settings.demos if most is None else most
    if demos < 1:
        raise UsageError(f"prompt.way={way} is about demos, and prompt.demos=0; accepted: 1 or more")
    if len(rows.shown) < demos:
        raise UsageError(
            f"prompt.way={way}: {demos} demos are asked for (prompt.demos), and {len(rows.shown)} train examples are "
            f"left to make them of beside the {len(rows.scored)} that candidates compete on (prompt.examples); "
            "accepted: fewer of either, or more train examples"
        )


def student_of(pulling: Pulling) -> dspy.Module:
    """The parent as a student; demos that are found by likeness are left out: DSPy's sets of demos are shown whole."""
    return pulling.rehearsal.student(
        {n: replace(p, demos=(), nearest=0) if p.nearest else p for n, p in pulling.parent.prompts.items()}
    )


def teacher_of(pulling: Pulling) -> dspy.Module:
    """The student with labelled demos, as DSPy makes its teacher; all its answers on ``shown`` are there already."""
    student, shown = student_of(pulling), pulling.examples("shown")
    teacher = LabeledFewShot(k=pulling.settings.demos).compile(student.reset_copy(), trainset=shown)
    teacher._compiled = True
    asked: list[tuple[Prompts, str]] = []
    for example_id, example in pulling.rows.shown:
        without = teacher.deepcopy()
        for predictor in without.predictors():  # as DSPy's loop does: no example is asked beside its own answer
            predictor.demos = [demo for demo in predictor.demos if demo != example]
        asked.append((pulling.rehearsal.prompts_of(without), example_id))
    pulling.rehearsal.run_each(asked)
    return teacher


def threads_for(pulling: Pulling) -> int:
    """Threads of DSPy's loops: they only wait, for one batch."""
    return min(THREADS, max(len(pulling.rows.scored), len(pulling.rows.shown), 2))
