"""Kept rollouts as MLflow traces of a run: a span of the program, below it one of each predictor call, and the scores.

They are written after the fact, from what is stored: nothing is traced while rollouts run, and no span has a duration.
An id is a digest of run and rollout, so that what is told twice is written once. Knows rollouts and MLflow's client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colever.samples import SampledRollout, SampledStep
from colever.types import digest_of

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Run, Span, TraceInfo
    from mlflow.tracing.client import TracingClient

PREVIEW = 1000  # characters, as MLflow keeps them


def log_traces(uri: str, run: Run, rollouts: Sequence[SampledRollout], tags: Mapping[str, str]) -> None:
    """The rollouts as traces of ``run``, with these tags. Raises what MLflow's store raises."""
    client, found = _client(uri), [_Trace(run, rollout, tags, place) for place, rollout in enumerate(rollouts)]
    for trace in found:
        client.start_trace(trace.info())
    if found:
        client.log_spans(run.info.experiment_id, [span for trace in found for span in trace.spans()])


def replace_traces(uri: str, run: Run, rollouts: Mapping[str, Sequence[SampledRollout]]) -> None:
    """The run's traces are these, tagged by candidate: those that it has stay, others that it had go."""
    there, wanted = set(traces_of(uri, run)), set[str]()
    for name, kept in rollouts.items():
        tags = {"candidate": name, "split": "test"}
        ids = {_Trace(run, rollout, tags).id: rollout for rollout in kept}
        wanted |= set(ids)
        log_traces(uri, run, [rollout for key, rollout in ids.items() if key not in there], tags)
    if gone := sorted(there - wanted):
        _client(uri).delete_traces(run.info.experiment_id, trace_ids=gone)


def link_traces(uri: str, run: Run, source: Run) -> None:
    """The traces of ``source`` are seen at ``run`` too: of a round that two trials share."""
    _client(uri).store.link_traces_to_run(traces_of(uri, source), run.info.run_id)


def traces_of(uri: str, run: Run) -> list[str]:
    """The ids of a run's traces."""
    found = _client(uri).search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500, include_spans=False
    )
    return [trace.info.trace_id for trace in found]


def _client(uri: str) -> TracingClient:
    from mlflow.tracing.client import TracingClient

    return TracingClient(uri)


class _Trace:
    """One rollout's trace: where its parts get their ids and times from."""

    def __init__(self, run: Run, rollout: SampledRollout, tags: Mapping[str, str], place: int = 0) -> None:
        self.run, self.rollout, self.tags = run, rollout, tags
        self.time = run.info.start_time - place  # the UI lists the latest first: one order in every round
        of = [run.info.run_id, rollout.to_json(), dict(tags)]
        self._hex = "".join(digest_of([*of, part]) for part in range(2))

    @property
    def id(self) -> str:
        return f"tr-{self._hex}"

    def spans(self) -> Iterator[Span]:
        rollout = self.rollout
        said = rollout.outputs or {"failed": rollout.reason}
        yield self._span(0, "program", "CHAIN", rollout.inputs, said, rollout.failure is not None, rollout.reason)
        for place, step in enumerate(rollout.steps, 1):
            name = step.predictor or "predictor"
            yield self._span(place, name, "LLM", _read(step), _written(step), step.failed, "could not be parsed")

    def info(self) -> TraceInfo:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        rollout, tokens = self.rollout, [(s.prompt_tokens, s.completion_tokens) for s in self.rollout.steps]
        read, written = sum(t for t, _ in tokens), sum(t for _, t in tokens)
        usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        return TraceInfo(
            trace_id=self.id,
            trace_location=TraceLocation.from_experiment_id(self.run.info.experiment_id),
            request_time=self.time,
            state=TraceState.OK if rollout.failure is None else TraceState.ERROR,
            request_preview=_text(rollout.inputs)[:PREVIEW],
            response_preview=_text(rollout.outputs or rollout.reason)[:PREVIEW],
            execution_duration=0,
            trace_metadata={
                "mlflow.sourceRun": self.run.info.run_id,
                "mlflow.trace_schema.version": "3",
                "mlflow.trace.tokenUsage": json.dumps(usage),
            },
            tags={"mlflow.traceName": rollout.example_id, "example": rollout.example_id, **self.tags},
            assessments=list(self._assessments()),
        )

    def _assessments(self) -> Iterator[Assessment]:
        """The score, each criterion and gold as feedback of code, and the fields that the example expects."""
        from mlflow.entities import Expectation, Feedback
        from mlflow.entities.assessment_source import AssessmentSource

        rollout, source = self.rollout, AssessmentSource(source_type="CODE", source_id="rubric")
        values = {"score": rollout.total, "gold": rollout.gold, **rollout.by_criterion}
        made: list[Assessment] = [
            Feedback(
                name=name, value=round(value, 4), source=source, trace_id=self.id,
                rationale=(rollout.feedback or None) if name == "score" else None,
            )
            for name, value in values.items() if value is not None
        ]  # fmt: skip
        made += [Expectation(name=name, value=_text(value), trace_id=self.id, source=source)
                 for name, value in rollout.expected.items() if name not in values and value is not None]  # fmt: skip
        for place, assessment in enumerate(made):
            assessment.assessment_id = f"a-{self._hex[:-2]}{place:02d}"  # told twice: the same one
            yield assessment

    def _span(self, place: int, name: str, kind: str, read: Any, written: Any, failed: bool, why: str) -> Span:
        from mlflow.entities import Span

        time, own = 10**6 * self.time + place, int(self._hex[:14], 16) << 8
        attributes = {"traceRequestId": self.id, "spanType": kind, "spanInputs": read, "spanOutputs": written}
        return Span.from_dict(
            {
                "trace_id": self.id,
                "span_id": f"{own + place:016x}",
                "parent_span_id": f"{own:016x}" if place else None,
                "name": name,
                "start_time_unix_nano": time,
                "end_time_unix_nano": time,
                "status": {"code": f"STATUS_CODE_{'ERROR' if failed else 'OK'}", "message": why if failed else ""},
                "attributes": {f"mlflow.{key}": json.dumps(value, ensure_ascii=False)
                               for key, value in attributes.items()},
                "events": [],
            }
        )  # fmt: skip


def _read(step: SampledStep) -> dict[str, Any]:
    return {**step.inputs, "prompt": step.prompt}


def _written(step: SampledStep) -> dict[str, Any]:
    return {**step.outputs, "completion": step.completion}


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
