"""The one way to run rollouts: a program on examples × samples, with exactly one of three outcomes each.

Knows programs, examples and a scoring function that it is handed; no tasks, no levers. A *score*; a *policy
failure* (what the model wrote could not be used: the lowest score); an *infrastructure failure* (the machinery
broke: no score). An error in the scoring code or in the program's own code stops the whole call.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError, LMError

from colever.engines.calls import CallRecorder, current_call
from colever.errors import ColeverError, InfrastructureError, TaskError
from colever.pipelines.adapter import RolloutAdapter
from colever.pipelines.copying import copy_program
from colever.pipelines.plain import plain
from colever.pipelines.shortening import ShortPrompts, short_ids
from colever.types import PredictorPrompt, Rollout, Score, Step

ScoreFunction = Callable[[dspy.Example, dspy.Prediction, Sequence[Step]], Score]
FailFunction = Callable[[str], Score]

MOST_INFRASTRUCTURE = 0.1  # share of infrastructure failures above which a run means nothing


def run_rollouts(
    program: dspy.Module,
    examples: Sequence[tuple[str, dspy.Example]],
    *,
    lm: dspy.LM,
    score: ScoreFunction,
    fail: FailFunction,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
    split: str = "train",
    concurrency: int = 256,
    on_done: Callable[[int], None] | None = None,
    short: Mapping[str, PredictorPrompt] | None = None,
) -> list[Rollout]:
    """``samples`` rollouts of each (id, example), example by example.

    ``lm``: on an engine in this process every step keeps its tokens and the result does not depend on ``concurrency``
    or on the order in which threads run; with any other ``dspy.LM`` steps have words and no tokens, and an engine may
    say how many rollouts it answers at once. ``on_done`` gets the number of rollouts done so far. ``short``: prompts by
    predictor, under which every step keeps its call's prompt ids too (``Step.short_ids``); nothing else depends on
    them. Raises TaskError (from ``score``, for a program without predictors, or one that fails before it ever calls a
    model) and InfrastructureError if more than a tenth of the rollouts fail that way.
    """
    attempts = [
        Attempt(program, example_id, example, sample, temperature)
        for example_id, example in examples
        for sample in range(samples)
    ]
    return run_attempts(
        attempts, lm=lm, score=score, fail=fail, max_tokens=max_tokens, seed=seed, split=split,
        concurrency=concurrency, on_done=on_done, short=short,
    )  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One rollout to be run: a program on an example; ``sample`` tells those apart that are alike otherwise."""

    program: dspy.Module
    example_id: str
    example: dspy.Example
    sample: int = 0
    temperature: float = 0.0


def run_attempts(
    attempts: Sequence[Attempt],
    *,
    lm: dspy.LM,
    score: ScoreFunction,
    fail: FailFunction,
    max_tokens: int = 256,
    seed: int = 0,
    split: str = "train",
    concurrency: int = 256,
    on_done: Callable[[int], None] | None = None,
    short: Mapping[str, PredictorPrompt] | None = None,
    spared: int = 0,
) -> list[Rollout]:
    """Rollouts of several programs together; see ``run_rollouts``, which is this for one program.

    ``spared``: so many infrastructure failures raise nothing, however few the rollouts are.
    """
    if any(not attempt.program.named_predictors() for attempt in attempts[:1]):
        raise TaskError(
            "the program has no predictors (dspy.Predict, dspy.ChainOfThought, …): nothing can be optimized"
        )
    if not attempts:
        return []
    kept = ShortPrompts(short, lm.engine.prompt_ids) if short is not None and hasattr(lm.engine, "prompt_ids") else None
    settings = {
        "adapter": RolloutAdapter(kept),
        "disable_history": True,
        "track_usage": False,
        "trace": None,
        "warn_on_type_mismatch": False,
    }
    heat = dict.fromkeys(attempt.temperature for attempt in attempts)
    lms = {t: lm.copy(temperature=t, max_tokens=max_tokens, cache=False) for t in heat}
    one = _OneRollout(settings, lms, score, fail, _counts_calls(lm))
    jobs = [_Job(place, a, (seed, split, a.example_id, a.sample)) for place, a in enumerate(attempts)]
    engine = getattr(lm, "engine", None)
    width = min(concurrency, getattr(engine, "concurrency", concurrency), len(jobs))
    rollouts = _Pool(one, jobs, on_done).run(engine, max(1, width))
    _refuse_broken(rollouts, spared)
    return rollouts


@dataclass(frozen=True)
class _Job:
    place: int
    attempt: Attempt
    seed_key: tuple[object, ...]


class _Pool:
    """Threads that take jobs in order while the calling thread runs the engine's batches."""

    def __init__(self, one: _OneRollout, jobs: Sequence[_Job], on_done: Callable[[int], None] | None) -> None:
        self.one, self.jobs, self.on_done = one, jobs, on_done
        self.results: dict[int, Rollout] = {}
        self.errors: dict[int, BaseException] = {}
        self.stop = threading.Event()
        self._next = iter(jobs)
        self._lock = threading.Lock()

    def run(self, engine: Any, width: int) -> list[Rollout]:
        batched = hasattr(engine, "session")
        with engine.session(width) if batched else nullcontext() as session:
            threads = [
                threading.Thread(
                    target=contextvars.copy_context().run, args=(self._work, session), daemon=True, name=f"rollout-{i}"
                )
                for i in range(width)
            ]
            try:
                for thread in threads:
                    thread.start()
                if session is not None:
                    session.run()
                for thread in threads:
                    thread.join()
            finally:
                self.stop.set()
        if self.errors:
            raise self.errors[min(self.errors)]  # the first in the order of jobs, whichever thread was first
        return [self.results[job.place] for job in self.jobs]

    def _work(self, session: Any) -> None:
        try:
            while not self.stop.is_set():
                with self._lock:
                    job = next(self._next, None)
                if job is None:
                    return
                self._run(job, session)
        finally:
            if session is not None:
                session.finished()

    def _run(self, job: _Job, session: Any) -> None:
        try:
            rollout = self.one.run(job, session)
            with self._lock:  # told in order, so that progress never falls back
                self.results[job.place] = rollout
                if self.on_done is not None:
                    self.on_done(len(self.results))
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread, which raises it
            with self._lock:
                self.errors[job.place] = error
            self.stop.set()


class _OneRollout:
    """What all rollouts of a run share, and one rollout from copy to score."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        lms: Mapping[float, dspy.LM],
        score: ScoreFunction,
        fail: FailFunction,
        recorded: bool,
    ) -> None:
        self.settings, self.lms, self.score, self.fail, self.recorded = settings, lms, score, fail, recorded

    def run(self, job: _Job, session: Any) -> Rollout:
        """Raises TaskError and whatever else must stop the run; everything else becomes an outcome."""
        lm = self.lms[job.attempt.temperature]
        program = copy_program(job.attempt.program, lm)
        short = None if self.settings["adapter"].short is None else dict[Any, Any]()
        recorder = CallRecorder(
            job.seed_key, order=job.place, session=session, program=program, short_ids=short,
            inputs=dict(job.attempt.example.inputs()),
        )  # fmt: skip
        token = current_call.set(recorder)
        try:
            with dspy.context(lm=lm, **self.settings):
                return self._outcome(job, program, recorder)
        finally:
            current_call.reset(token)

    def _outcome(self, job: _Job, program: dspy.Module, recorder: CallRecorder) -> Rollout:
        try:
            prediction = program(**job.attempt.example.inputs())
        except Exception as error:  # noqa: BLE001 - the boundary to the program: sorted into outcomes below
            failure = self._failure(error, recorder)
            reason = f"{type(error).__name__}: {_first_line(error)}"
            score = self.fail(reason) if failure == "policy" else None
            return self._rollout(job, program, recorder, score, {}, failure, reason)
        if not isinstance(prediction, dspy.Prediction):
            raise TaskError(f"the program returned {type(prediction).__name__}; accepted: a dspy.Prediction")
        try:
            score = self.score(job.attempt.example, prediction, _steps(program, recorder))
        except InfrastructureError as error:  # a judge or a sandbox that broke says nothing of what the model wrote
            reason = f"scoring: {_first_line(error)}"
            return self._rollout(job, program, recorder, None, _outputs(prediction), "infrastructure", reason)
        return self._rollout(job, program, recorder, score, _outputs(prediction), None, "")

    def _failure(self, error: Exception, recorder: CallRecorder) -> Any:
        """``policy`` or ``infrastructure``; raises what is neither."""
        if isinstance(error, InfrastructureError | ConnectionError | TimeoutError | URLError):
            return "infrastructure"
        if isinstance(error, ColeverError):
            raise error
        if isinstance(error, ContextWindowExceededError):
            return "policy"
        if isinstance(error, LMError):
            if isinstance(error.__cause__, ColeverError) and not isinstance(error.__cause__, InfrastructureError):
                raise error.__cause__
            return "infrastructure"
        if self.recorded and not recorder.calls:
            raise TaskError(
                f"the program raised {type(error).__name__} before its first model call: {error}"
            ) from error
        return "policy"

    @staticmethod
    def _rollout(
        job: _Job,
        program: dspy.Module,
        recorder: CallRecorder,
        score: Score | None,
        outputs: Mapping[str, Any],
        failure: Any,
        reason: str,
    ) -> Rollout:
        steps = _steps(program, recorder)
        version = steps[0].completion.version if steps else ""
        return Rollout(job.attempt.example_id, job.attempt.sample, steps, score, outputs, failure, reason, version)


def _steps(program: dspy.Module, recorder: CallRecorder) -> tuple[Step, ...]:
    names = {id(p): name for name, p in program.named_predictors()}
    counts: dict[str, int] = {}
    steps = []
    for place, (module, completion) in enumerate(recorder.completions):
        name = names.get(id(module), "")  # "": a predictor that the program makes as it runs
        asked, said = recorder.fields.get(place, ({}, {}))
        failed = place in recorder.unparsed
        short = short_ids(recorder, module, name, completion)
        drifted = place in recorder.drifted
        steps.append(Step(name, counts.get(name, 0), completion, failed, plain(asked), plain(said), short, drifted))
        counts[name] = counts.get(name, 0) + 1
    return tuple(steps)


def _outputs(prediction: dspy.Prediction) -> dict[str, Any]:
    return {name: plain(value) for name, value in prediction.items()}


def _first_line(error: Exception) -> str:
    if isinstance(error, AdapterParseError):
        return f"no {', '.join(error.signature.output_fields)} in: {error.lm_response!r}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _counts_calls(lm: dspy.LM) -> bool:
    return getattr(getattr(lm, "engine", None), "counts_calls", False)


def _refuse_broken(rollouts: Sequence[Rollout], spared: int) -> None:
    broken = [r for r in rollouts if r.failure == "infrastructure"]
    if len(broken) > max(spared, MOST_INFRASTRUCTURE * len(rollouts)):
        raise InfrastructureError(
            f"{len(broken)} of {len(rollouts)} rollouts failed for reasons other than the model's output"
            f" (accepted: a tenth); the first: {broken[0].reason}"
        )
