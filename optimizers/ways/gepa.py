"""Way "gepa": reflective evolution of instructions by ``gepa.optimize``, with feedback per predictor out of the rubric.

gepa's own loop does the search and DSPy's own ``InstructionProposer`` asks the proposer; the adapter between them is
ours, where DSPy's has two faults: it takes the calls of two predictors with equal signatures for each other's, and it
tells every predictor the whole run's failure. ``prompt.rollouts`` is its number of metric calls; minibatches for
reflection come from ``shown``, the Pareto set is ``scored``. Its own run directory, a pickled state, is not used: a
pull that goes on runs it again from its start, on the rehearsal's and the proposer's journals.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.teleprompt.gepa import InstructionProposer
from dspy.utils.exceptions import AdapterParseError
from gepa import EvaluationBatch, optimize

from colever.config import MINIBATCH, PromptSettings
from colever.errors import LeverError, UsageError
from colever.optimizers.rehearsed import Rehearsed
from colever.optimizers.ways.way import Calls, Found, Prompts, Pulling, TrainRows
from colever.tasks.task import Task
from colever.types import Candidate

Texts = dict[str, str]  # predictor → instruction


class Gepa:
    needs_proposer = True

    def check(self, settings: PromptSettings, task: Task, rows: TrainRows) -> None:
        least = len(rows.scored) + 2 * MINIBATCH
        if settings.rollouts < least:
            raise UsageError(
                f"prompt.way=gepa: prompt.rollouts={settings.rollouts} ends before a first proposal is scored; "
                f"accepted: {least} or more (the {len(rows.scored)} of prompt.examples, and two minibatches)"
            )

    def planned(self, settings: PromptSettings, task: Task, parent: Candidate, rows: TrainRows) -> Calls:
        """gepa stops when its calls are spent, after the full evaluation in flight."""
        reflections = (settings.rollouts - len(rows.scored)) // (2 * MINIBATCH)
        return Calls(settings.rollouts + len(rows.scored) + 2 * MINIBATCH, reflections)

    def search(self, pulling: Pulling) -> Found:
        adapter = RubricAdapter(pulling)
        result: Any = optimize(
            seed_candidate={name: prompt.instructions for name, prompt in pulling.parent.prompts.items()},
            trainset=[example_id for example_id, _ in pulling.rows.shown],
            valset=pulling.scored,
            adapter=adapter,  # type: ignore[arg-type]
            reflection_minibatch_size=min(MINIBATCH, len(pulling.rows.shown)),
            max_metric_calls=pulling.settings.rollouts,
            use_merge=True,
            seed=pulling.seed,
            logger=_Log(),
            track_best_outputs=False,
            raise_on_exception=True,
        )
        if adapter.asked and adapter.unusable == adapter.asked:
            raise LeverError(
                f"the proposer wrote no usable instruction in {adapter.asked} reflections; the last reply: "
                f"{adapter.last!r}"
            )
        scores = result.val_aggregate_scores
        texts: Sequence[Texts] = result.candidates  # type: ignore[assignment]
        tried = [
            {"what": _changed(text, texts[0]) or "as it was", "screen": None, "final": score}
            for text, score in zip(texts, scores, strict=True)
        ]
        best = texts[result.best_idx]
        return Found(
            adapter.prompts(best),
            f"proposal {result.best_idx} of {len(texts) - 1}" if result.best_idx else "as it was",
            tried,
            {"train/final": list(enumerate(scores))},
        )


class RubricAdapter:
    """gepa's adapter on a rehearsal: rollouts by example id, and records of each predictor's own calls."""

    def __init__(self, pulling: Pulling) -> None:
        self.pulling, self.rng = pulling, random.Random(pulling.seed)
        self.propose = InstructionProposer()
        self.asked = self.unusable = 0
        self.last = ""

    def prompts(self, texts: Texts) -> Prompts:
        """The parent's prompts with these instructions."""
        return {name: replace(p, instructions=texts[name]) for name, p in self.pulling.parent.prompts.items()}

    def evaluate(
        self, batch: Sequence[str], candidate: Texts, capture_traces: bool = False
    ) -> EvaluationBatch[Rehearsed, Mapping[str, Any]]:
        """One rollout per example; the policy's failures have the rubric's lowest score."""
        rollouts = self.pulling.rehearsal.run(self.prompts(candidate), batch)
        return EvaluationBatch(
            outputs=[r.outputs for r in rollouts],
            scores=[r.total for r in rollouts],
            trajectories=rollouts if capture_traces else None,
        )

    def make_reflective_dataset(
        self, candidate: Texts, eval_batch: EvaluationBatch[Rehearsed, Any], components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Per predictor and rollout one of its calls, the failed one where there is one, with what is said of it."""
        return {
            name: [record for r in eval_batch.trajectories or () if (record := self._record(name, r)) is not None]
            for name in components_to_update
        }

    def propose_new_texts(
        self, candidate: Texts, reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]], components_to_update: Any
    ) -> Texts:
        """What DSPy's proposer makes of the records; the old text where it wrote nothing that can be used."""
        new: Texts = {}
        for name in components_to_update:
            self.asked += 1
            new[name] = candidate[name]
            if not reflective_dataset.get(name):
                continue
            try:
                with dspy.context(lm=self.pulling.proposer, trace=None):
                    made = self.propose(
                        candidate=candidate, reflective_dataset=reflective_dataset, components_to_update=[name]
                    )
            except (AdapterParseError, ValueError) as error:
                if getattr(self.pulling.proposer.engine, "failed", None):  # type: ignore[union-attr]
                    raise
                self.unusable, self.last = self.unusable + 1, str(getattr(error, "lm_response", error))[:200]
                continue
            text = str(made.get(name, "")).strip()
            self.unusable += not text
            new[name] = text or candidate[name]
        return new

    def get_adapter_state(self) -> dict[str, Any]:
        return {"rng": self.rng.getstate()}

    def set_adapter_state(self, state: Mapping[str, Any]) -> None:
        if "rng" in state:  # nothing is in the state of a run that begins
            self.rng.setstate(state["rng"])

    def _record(self, name: str, rollout: Rehearsed) -> dict[str, Any] | None:
        calls = [call for call in rollout.calls if call[0] == name]
        if not calls:
            return None
        _, inputs, outputs, failed, text = next((c for c in calls if c[3]), None) or self.rng.choice(calls)
        said: Any = dict(outputs)
        if failed:
            said = f"(no fields could be read from this reply) {text}"
        return {"Inputs": dict(inputs), "Generated Outputs": said, "Feedback": self._feedback(name, rollout, failed)}

    def _feedback(self, name: str, rollout: Rehearsed, failed: bool) -> str:
        """What the rubric says of this step; a failure is told to the step that failed alone."""
        if rollout.failure is None:
            return self.pulling.task.rubric.feedback(rollout.score, name)
        if failed:
            fields = ", ".join(dict(self.pulling.task.program().named_predictors())[name].signature.output_fields)
            return (
                f"score {rollout.total:.2f}. this step: its reply lacks the fields asked for ({fields}) in their form"
            )
        if any(call[3] for call in rollout.calls):
            return f"score {rollout.total:.2f}. The run failed at another step; nothing is known against this one"
        last = rollout.calls[-1][0] if rollout.calls else ""
        if name == last:
            return f"score {rollout.total:.2f}. The program stopped at this step's reply: {rollout.reason}"
        return f"score {rollout.total:.2f}. The run failed after another step; nothing is known against this one"


class _Log:
    """gepa's lines in our log."""

    def log(self, message: str) -> None:
        logging.getLogger("colever.gepa").debug(message)


def _changed(texts: Texts, base: Texts) -> str:
    return "; ".join(f"{name}: {text}" for name, text in texts.items() if text != base[name])[:400]


WAY = Gepa()
