"""A rubric designed by a language model: from what the task is, what was tried, and rollouts that fail by gold.

It writes a rubric's file, of the kinds that are ready and the task's own criteria: data, never code. What cannot be
read, or a criterion that breaks on the answers of ``rubric check``, is told to it, and it may try again. (Rewards that
a language model designs from how earlier ones did: Ma et al. 2023, *Eureka*, arXiv 2310.12931.)

Knows a proposer, tables and rollouts; pulls nothing and chooses nothing.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import yaml

from colever.errors import BudgetExhausted, InfrastructureError, TaskError, UsageError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import metered
from colever.optimizers.proposer import counted
from colever.samples import SampledRollout, cut
from colever.tasks.criteria import KINDS
from colever.tasks.criteria.page import settings_of
from colever.tasks.criteria.panel import Panel
from colever.tasks.judges import judges_of
from colever.tasks.rubric_check import check_rubric
from colever.tasks.rubric_file import COMMON
from colever.tasks.rubric_tables import Tables, tables_in
from colever.tuned import TriedRubric

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task

TRIES = 3
SHOWN = 6  # failing rollouts in a question
ANSWERS, JUDGED = 64, 8  # train examples of whose answers a design is tried, without and with judges
LONGEST = 600  # characters of one text in it
RUN = ("unit_tests",)  # kinds that run programs
FENCE = re.compile(r"```(?:ya?ml)?[ \t]*\n(.*?)```", re.DOTALL)


class DesignRubric(dspy.Signature):
    """Design the rubric by which a small language model is trained.

    Reinforcement learning climbs the rubric's total, whatever it says; what counts in the end is the truth metric
    `gold`, on examples that training does not see. A rubric is a list of criteria, each a number in [0, 1] per rollout:
    the total is their mean by `weight`. More can be said of each: `gate: 1.0` (the total is 0 unless its value is at
    least that), `clip: [low, high]`, `stage: 1` (counts once all of stage 0 is full), `hint`, `predictor`, `form: true`
    (speaks of form, not of truth). Pay for steps towards the right answer that the model can already take now and then;
    leave out what can be had without being right.
    """

    task: str = dspy.InputField(desc="the program and the fields of its examples")
    kinds: str = dspy.InputField(desc="kinds of criteria, with their settings; of kind `task`: the task's own")
    tried: str = dspy.InputField(desc="rubrics tried so far, each with gold after training under it")
    failing: str = dspy.InputField(desc="rollouts that gold calls wrong, after training under the best so far")
    mistake: str = dspy.InputField(desc="what was wrong with your last answer, if anything")
    rubric: str = dspy.OutputField(desc="YAML: a list under `criterion`, each with name, kind, weight and settings")


@dataclass(frozen=True)
class Designer:
    """One question after the other, counted and kept in the tuning's folder."""

    lm: dspy.LM
    task: Task  # under the rubric that tuning began with
    budget: Budget
    folder: Path
    seed: int
    engine: TransformersEngine

    def design(
        self,
        number: int,
        tried: Sequence[TriedRubric],
        rollouts: Sequence[SampledRollout],
        scored_by: Callable[[Tables, Path], Task],
    ) -> tuple[list[dict[str, Any]], str]:
        """(tables, ""), or ([], why) where no answer in ``TRIES`` could be used. Raises what the proposer raises."""
        lm = counted(self.lm, self.budget, self.folder / f"design-{number}.jsonl", seed=self.seed + number,
                     policy=self.engine)  # fmt: skip
        told = {
            "task": described(self.task),
            "kinds": catalog(self.task),
            "tried": "\n\n".join(map(_tried, tried)),
            "failing": failing(rollouts),
        }
        mistake = ""
        for _ in range(TRIES):
            try:
                with dspy.context(lm=lm, trace=None, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
                    answer = dspy.Predict(DesignRubric)(**told, mistake=mistake or "nothing").rubric
                return self._read(str(answer), number, tried[0].tables, scored_by), ""
            except (InfrastructureError, BudgetExhausted):
                raise
            except Exception as error:  # the boundary to DSPy's reader, unless the proposer itself failed
                if (broken := lm.engine.failed) is not None:  # the proposer itself, whatever was made of it
                    raise broken from error
                said = str(error) if isinstance(error, UsageError) else f"the answer has no field `rubric`: {error}"
                mistake = cut(said, LONGEST)
        return [], f"the proposer's {TRIES} designs cannot be used; the last: {mistake}"

    def _read(
        self, text: str, number: int, own: Tables, scored_by: Callable[[Tables, Path], Task]
    ) -> list[dict[str, Any]]:
        """The tables of an answer. Raises TaskError that says what is wrong with it."""
        fenced = FENCE.findall(text)
        file = self.folder / "rubrics" / "design.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((fenced[-1] if fenced else text).strip() + "\n", encoding="utf-8", errors="replace")
        tables, known = tables_in(file), [_check_of(table) for table in own]
        allowed = [*usable(self.task), "task"]
        for table in tables:
            if table.get("kind") not in allowed and _check_of(table) not in known:
                raise TaskError(f"kind {table.get('kind')!r}: accepted here: {', '.join(allowed)}")
        tables = [_resolved(table, own) for table in tables]
        self._try_out(scored_by(tables, file.with_name(f"{number}.yaml")))
        return tables

    def _try_out(self, task: Task) -> None:
        """Score the answers of ``rubric check``; what judges cost there is charged. Raises TaskError."""
        with metered(self.engine, 0, self.budget):
            try:
                check = check_rubric(task, "train", JUDGED if judges_of(task) else ANSWERS)
            except TaskError:  # no answers can be made of its labels, for which no rubric is to blame
                return
        for row in check.rows:
            for name in row.broken.keys() - {"gold"}:
                raise TaskError(f"criterion {name!r} breaks on {row.name} answers: {row.broken[name]}")
        if check.faults and check.rows[0].total == 0:
            raise TaskError(check.faults[-1])


def _check_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """What of a table says which check it is."""
    return {key: value for key, value in table.items() if key == "kind" or key not in COMMON}


def _resolved(table: dict[str, Any], own: Tables) -> dict[str, Any]:
    """A criterion of the rubric that tuning began with, asked for as one of the task, as that rubric has it."""
    named = table.get("criterion", table.get("name"))
    found = next((dict(before) for before in own if before["name"] == named), None)
    if found is None or table.get("kind") != "task" or table.keys() - {*COMMON, "criterion"}:
        return table
    if found["kind"] == "task":
        found.setdefault("criterion", found["name"])
    return {**found, **{key: value for key, value in table.items() if key not in ("kind", "criterion")}}


def usable(task: Task) -> list[str]:
    """Kinds that a design may use: none that runs programs, and judges only where the task has one."""
    judged = any(isinstance(c.check, Panel) for c in task.rubric.criteria)
    return [k for k, kind in KINDS.items() if k not in RUN and (judged or not issubclass(kind, Panel))]


def described(task: Task) -> str:
    """The program's predictors with their signatures, and an example's fields."""
    lines = [f"task {task.name}"]
    for name, predictor in task.program().named_predictors():
        signature = predictor.signature
        fields = (
            ", ".join(signature.input_fields),
            ", ".join(
                f"{field} ({getattr(info.annotation, '__name__', str(info.annotation))})"
                for field, info in signature.output_fields.items()
            ),
        )
        lines.append(f"predictor {name}: {fields[0]} -> {fields[1]}: {cut(signature.instructions, LONGEST)}")
    row = task.train[0]
    lines.append(f"inputs of an example: {_json(row.inputs().toDict())}")
    lines.append(f"its labels: {_json(row.labels().toDict())}")
    return "\n".join(lines)


def catalog(task: Task) -> str:
    """The kinds with their settings, and the task's own criteria with what they say."""
    lines = []
    for name in usable(task):
        said = (inspect.getdoc(KINDS[name]) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"{name}: {said} Settings: {'; '.join(settings_of(KINDS[name]))}")
    for c in task.rubric.criteria:
        told = c.hint or (inspect.getdoc(c.check) if inspect.isfunction(c.check) else "") or "of the task"
        lines.append(f"task (criterion: {c.name}): {told}")
    return "\n".join(lines)


def failing(rollouts: Sequence[SampledRollout]) -> str:
    """Those that gold calls wrong, the ones with the highest totals first: what the rubric pays for in vain."""
    wrong = [r for r in rollouts if r.gold is not None and r.gold < 1]
    wrong.sort(key=lambda r: -(r.total or 0.0))
    return "\n\n".join(map(_rollout, wrong[:SHOWN])) or "none"


def _rollout(rollout: SampledRollout) -> str:
    steps = [f"{s.predictor}: {cut(s.completion, LONGEST)}" for s in rollout.steps[:4]]
    values = ", ".join(f"{name} {value:.2f}" for name, value in rollout.by_criterion.items())
    said = [f"example {_json(rollout.inputs)}", f"labels {_json(rollout.expected)}", *steps]
    said.append(f"could not be used: {rollout.reason}" if rollout.failure else f"output {_json(rollout.outputs)}")
    return "\n".join([*said, f"total {rollout.total or 0:.2f} ({values}), gold {rollout.gold:.2f}"])


def _tried(tried: TriedRubric) -> str:
    if not tried.tables:
        return f"rubric {tried.number}: {tried.error}"
    how = f"gold {tried.gold:.3f}" if tried.gold is not None else f"its training failed: {cut(tried.error, LONGEST)}"
    written = yaml.safe_dump({"criterion": [dict(t) for t in tried.tables]}, sort_keys=False, allow_unicode=True)
    return f"rubric {tried.number}, {how}:\n{written}"


def _json(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False, default=str), LONGEST)
