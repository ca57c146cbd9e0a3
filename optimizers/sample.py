"""Which rollouts of an evaluation are kept to be looked at, and how much of them.

The choice is by a digest of the example's id alone, so that base, every child and every later run show the same
examples, and a larger sample holds the smaller one. Knows rollouts; scores and stores nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from colever.pipelines.plain import plain
from colever.samples import SampledRollout, SampledStep, cut
from colever.types import Completion, Rollout

if TYPE_CHECKING:
    import dspy

TEXTS = (4000, 1000, 250)  # characters of one text or field: the most with which the sample stays below MOST
MOST = 256 * 1024  # characters of a whole sample
STEPS = 16  # of one rollout: the first ones


def chosen(ids: Sequence[str], count: int) -> list[str]:
    """``count`` of the ids, in their own order."""
    picked = set(sorted(ids, key=lambda name: hashlib.sha256(name.encode(errors="replace")).digest())[:count])
    return [name for name in ids if name in picked]


def sampled(
    rollouts: Sequence[Rollout],
    examples: Sequence[tuple[str, dspy.Example]],
    count: int,
    text_of: Callable[[Sequence[int]], str],
) -> tuple[SampledRollout, ...]:
    """The chosen rollouts in words; ``text_of`` says which text prompt tokens are."""
    wanted, rows = chosen([name for name, _ in examples], count), dict(examples)
    by_id = {r.example_id: r for r in rollouts}
    found = [by_id[name] for name in wanted if name in by_id]
    text = "[]"
    for limit in TEXTS:
        made = [_in_words(rollout, rows[rollout.example_id], limit, text_of).to_json() for rollout in found]
        text = json.dumps(made, ensure_ascii=False)
        if len(text) <= MOST:
            break
    written = text.encode(
        errors="replace"
    ).decode()  # a model may write half of a surrogate pair, which has no encoding
    return tuple(SampledRollout.from_json(rollout) for rollout in json.loads(written))


def _in_words(
    rollout: Rollout, example: dspy.Example, limit: int, text_of: Callable[[Sequence[int]], str]
) -> SampledRollout:
    score = rollout.score
    steps = tuple(
        SampledStep(
            predictor=step.predictor,
            prompt=cut(_prompt(step.completion, text_of), limit),
            completion=cut(step.completion.text, limit),
            inputs=_short(step.inputs, limit),
            outputs=_short(step.outputs, limit),
            failed=step.failed,
            finish_reason=step.completion.finish_reason,
            prompt_tokens=(step.completion.lengths or (0, 0))[0],
            completion_tokens=(step.completion.lengths or (0, 0))[1],
        )
        for step in rollout.steps[:STEPS]
    )
    return SampledRollout(
        example_id=rollout.example_id,
        inputs=_short(plain(example.inputs().toDict()), limit),
        expected=_short(plain(example.labels().toDict()), limit),
        outputs=_short(rollout.outputs, limit),
        steps=steps,
        total=score.total if score else None,
        gold=score.gold if score else None,
        by_criterion=dict(score.by_criterion) if score else {},
        feedback=cut(score.feedback, limit) if score else "",
        failure=rollout.failure,
        reason=cut(rollout.reason, limit),
    )


def _prompt(completion: Completion, text_of: Callable[[Sequence[int]], str]) -> str:
    """What the model read: of a model behind an API the messages, for its template is not known."""
    return text_of(completion.prompt_ids) if completion.prompt_ids else completion.prompt


def _short(values: Any, limit: int) -> dict[str, Any]:
    """Each field as it is, or, where it is long, as the text of its JSON, cut."""
    short = {}
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        short[name] = value if len(text) <= limit else cut(text, limit)
    return short
