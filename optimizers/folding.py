"""Folding prompts into weights: into which prompts, how many tokens a call saves, what a pull says of it.

Knows candidates, tasks and rollouts; how completions are trained behind other prompts than they were sampled from is in
``trajectories`` and ``importance``. Context distillation (Snell et al., arXiv:2209.15189), with rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.types import Candidate, PredictorPrompt, Rollout, RoundRecord

if TYPE_CHECKING:
    from colever.tasks.task import Task

BEFORE, AFTER, GAP = "prompt_tokens/sampled", "prompt_tokens/trained", "fold_gap"
FOLD_HINT = ". With weights.fold, weights.way=rejection also learns from examples whose rollouts are all equally good"


def prompts_to_fold_into(task: Task, candidate: Candidate) -> Mapping[str, PredictorPrompt] | None:
    """The task's own prompts (instructions, no demos); None where the candidate's are these already."""
    own = task.base_candidate().prompts
    has = {**read_prompts(apply_prompts(task.program(), candidate.prompts)), **candidate.prompts}
    same = all(has[name].instructions == p.instructions and not has[name].demos for name, p in own.items())
    return None if same else own


def tokens_per_call(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean prompt tokens of a call as sampled and as trained; none where no call was made."""
    steps = [s for r in rollouts for s in r.steps]
    if not steps:
        return {}
    sampled = sum(len(s.completion.prompt_ids) for s in steps) / len(steps)
    return {BEFORE: sampled, AFTER: sum(len(s.short_ids) for s in steps) / len(steps)}


def fold_notes(folded: bool, curves: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """What a round's notes say of a pull with ``weights.fold``, from its curves."""
    if not folded:
        return {"folded": False, "fold": "nothing to fold: the candidate's prompts are the task's own"}
    before, after, gap = ([v for _, v in curves.get(name, [])] for name in (BEFORE, AFTER, GAP))
    told: dict[str, Any] = {"folded": True}
    if before:
        told["prompt_tokens"] = {"before": sum(before) / len(before), "after": sum(after) / len(after)}
    if gap:
        told["fold_gap"] = {"first": gap[0], "last": gap[-1]}
    return told


def folded_rounds(rounds: Sequence[RoundRecord]) -> list[int]:
    """The kept rounds (1 = first) that folded prompts into weights."""
    return [n for n, record in enumerate(rounds, 1) if record.accepted and record.notes.get("folded")]
