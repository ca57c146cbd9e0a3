"""Rollouts as DSPy's optimizers ask for them: a student whose every call is one rollout on train, scored by the rubric.

Knows the parent, the task, the engine and the budget; knows nothing of how an optimizer searches. DSPy's loops call
``student(...)`` from many threads: what is asked at the same time runs as one batch of ``run_attempts``. A rollout is a
function of its prompts, example, sample and temperature, so one that was run before is repeated from memory, and after
a kill from ``rollouts.jsonl`` in the pull's folder: the same search, run again, finds everything that it had done.

What a policy fails at is a prediction without fields that the metric scores as the rubric's lowest; what the machine
fails at is kept in ``failed``, raised to whoever asks next, and raised again by the prompt lever when the optimizer,
which may have swallowed it, returns.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import BaseCallback

from colever.engines.session import Gatherer
from colever.errors import BudgetExhausted, InfrastructureError, LeverError
from colever.optimizers.budget import Budget
from colever.optimizers.evaluate import metered, run_together
from colever.optimizers.journal import Journal
from colever.optimizers.lever import NullProgress, Progress
from colever.optimizers.rehearsed import Rehearsed
from colever.pipelines.plain import plain
from colever.pipelines.prompts import apply_prompts, read_prompts
from colever.types import Candidate, Cost, PredictorPrompt, digest_of

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine
    from colever.tasks.task import Task

THREADS = 256  # of DSPy's loops: they only wait
SETTLE = 0.01  # seconds without a further call after which a batch is run
AGAIN = 2  # times that a rollout without a score is tried once more
SPARED = 2  # of a small batch may be without one: many batches are of a few rollouts
_REHEARSED = "_colever_rehearsed"  # a private attribute: no field of the prediction
Prompts = Mapping[str, PredictorPrompt]


@dataclass(frozen=True)
class _Ask:
    """What makes a rollout the same as another."""

    prompts: Prompts
    digest: str  # of the prompts
    example_id: str
    sample: int
    temperature: float

    @property
    def key(self) -> str:
        return digest_of([self.digest, self.example_id, self.sample, self.temperature])


class Rehearsal:
    """One pull's rollouts on train; every one is reserved and charged, but one that is repeated.

    Of examples with equal inputs the first counts.
    """

    def __init__(
        self,
        parent: Candidate,
        task: Task,
        engine: TransformersEngine,
        budget: Budget,
        seed: int,
        workdir: Path,
        progress: Progress | None = None,
        planned: int = 0,
    ) -> None:
        self.parent, self.task, self.engine, self.budget, self.seed = parent, task, engine, budget, seed
        self.progress, self.planned = progress or NullProgress(), planned
        self.failed: BaseException | None = None
        self.asked, self._why = 0, ""
        # A rollout runs under these, as an evaluation does, whatever the search sets: dspy.Parallel ends by max_errors,
        # and callbacks are in the traceback that dspy.ReAct shows its model where a tool fails.
        self._outside = {"callbacks": list(dspy.settings.callbacks or ()), "max_errors": dspy.settings.max_errors}
        rows = distinct_rows(task)
        self._by_inputs = {_inputs_key(example.inputs()): example_id for example_id, example in rows}
        self._examples = dict(rows)
        self._fields = {n: list(p.signature.fields) for n, p in task.program().named_predictors()}
        self._lock = threading.Lock()
        self._gatherer: Any = Gatherer(self._run_batch, SETTLE, settle=True)  # type: ignore[arg-type]
        self._journal = Journal(workdir / "rollouts.jsonl")
        self._done: dict[str, Rehearsed] = {}
        self._used: set[str] = set()
        self._owed: dict[str, tuple[Cost, tuple[str, ...]]] = {}  # of an earlier process, by rollout: its batch's
        for batch, cost in self._journal.read(lambda entry: (_rollouts_of(entry), Cost(**entry["cost"]))):
            self._done |= batch
            self._owed |= dict.fromkeys(batch, (cost, tuple(batch)))

    @property
    def distinct(self) -> int:
        """Rollouts that the pull used, each once."""
        return len(self._used)

    # --- what an optimizer is handed ----------------------------------------------------------------

    def student(self, prompts: Prompts | None = None) -> dspy.Module:
        """The task's program with the parent's prompts (or these); a call of it, or of a copy, is one rollout."""
        program = apply_prompts(self.task.program(), self.parent.prompts if prompts is None else prompts)
        for predictor in program.predictors():
            predictor.lm = None  # DSPy's settings say which: ``stand_in``, or a copy at another temperature
        original, rehearsal = type(program), self

        def forward(self: dspy.Module, *args: Any, **kwargs: Any) -> dspy.Prediction:
            return rehearsal._perform(self, kwargs)

        name: dict[str, Any] = {"forward": forward, _REHEARSED: self}
        name |= {"__module__": original.__module__, "__qualname__": original.__qualname__}
        program.__class__ = type(original)(original.__name__, (original,), name)  # type: ignore[misc]
        return program

    def stand_in(self) -> dspy.LM:
        """The language model that DSPy's optimizers see: its settings say at which temperature a student runs."""
        temperature, most = self.task.temperature, self.task.max_tokens
        return dspy.LM(
            "colever/policy",
            engine=_NotAsked(self),
            cache=False,
            temperature=temperature,
            max_tokens=most,
            num_retries=0,
        )

    def metric(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        """The rubric's total of the rollout that made ``prediction``."""
        return self.of(prediction).total

    def metric_with_feedback(self, example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
        """The same with the rubric's words, for optimizers that read them."""
        rehearsed = self.of(prediction)
        return dspy.Prediction(score=rehearsed.total, feedback=rehearsed.feedback or "nothing fell short")

    @staticmethod
    def of(prediction: Any) -> Rehearsed:
        """The rollout behind a student's prediction. Raises LeverError for any other prediction."""
        found = getattr(prediction, _REHEARSED, None)
        if not isinstance(found, Rehearsed):
            raise LeverError("the metric was asked of a prediction that the student did not make")
        return found

    def prompts_of(self, program: dspy.Module) -> dict[str, PredictorPrompt]:
        """A program's prompts as a candidate holds them: demos as JSON, with the predictor's own fields alone.

        A demo that shows no input or no output of its predictor is none: DSPy's adapter leaves it out. Raises
        LeverError for a program whose predictors are not the task's.
        """
        found, prompts = {}, read_prompts(program)
        if set(prompts) != set(self._fields):
            has, accepted = (", ".join(names) or "none" for names in (prompts, self._fields))
            raise LeverError(f"the optimizer made a program with predictors {has}; accepted: the task's, {accepted}")
        for name, prompt in prompts.items():
            demos = [{f: plain(demo[f]) for f in self._fields[name] if f in demo} for demo in prompt.demos]
            kept = tuple(d for d in demos if self._shows(program, name, d))
            found[name] = PredictorPrompt(prompt.instructions, kept, prompt.nearest)
        return found

    # --- asking for many at once --------------------------------------------------------------------

    def run(self, prompts: Prompts, examples: Sequence[str]) -> list[Rehearsed]:
        """One rollout of each example (ids of train) under these prompts, at the task's temperature."""
        return self.run_each([(prompts, example_id) for example_id in examples])

    def run_each(self, pairs: Sequence[tuple[Prompts, str]]) -> list[Rehearsed]:
        """The same of any pairs of prompts and example, as one batch."""
        digests: dict[int, str] = {id(prompts): Candidate(prompts).digest for prompts, _ in pairs}
        asks = [_Ask(p, digests[id(p)], example_id, 0, self.task.temperature) for p, example_id in pairs]
        return self._answer(asks)

    def run_ahead(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> None:
        """Run what a student is about to be asked; examples that are none of train's are left to the call."""
        found = [self._ask_for(program, example.inputs()) for example in examples]
        with self._lock:
            missing = [ask for ask in found if ask is not None and ask.key not in self._done]
        if missing:
            self._gatherer.request(missing)

    def run_all(self, several: Sequence[Prompts], examples: Sequence[str]) -> None:
        """Every one of these prompts on every example as one batch: what is asked of them afterwards is there."""
        self.run_each([(prompts, example_id) for prompts in several for example_id in examples])

    def mean(self, prompts: Prompts, examples: Sequence[str]) -> float:
        """The mean score on these examples."""
        return sum(r.total for r in self.run(prompts, examples)) / len(examples)

    def trace_of(self, program: dspy.Module, rehearsed: Rehearsed) -> list[tuple[Any, dict[str, Any], Any]]:
        """The rollout's calls as DSPy's trace has them; those that could not be parsed are left out, as there."""
        predictors = dict(program.named_predictors())
        return [
            (predictors[name], dict(inputs), dspy.Prediction(**outputs))
            for name, inputs, outputs, failed, _ in rehearsed.calls
            if name in predictors and not failed
        ]

    # --- one call -----------------------------------------------------------------------------------

    def _perform(self, program: dspy.Module, inputs: Mapping[str, Any]) -> dspy.Prediction:
        ask = self._ask_for(program, inputs)
        if ask is None:
            raise self._fatal(
                LeverError(f"the optimizer ran the program on inputs that no train example has: {str(inputs)[:200]}")
            )
        [rehearsed] = self._answer([ask])
        if (trace := dspy.settings.trace) is not None:
            trace.extend(self.trace_of(program, rehearsed))
        prediction = dspy.Prediction(**rehearsed.outputs)
        object.__setattr__(prediction, _REHEARSED, rehearsed)
        return prediction

    def _ask_for(self, program: dspy.Module, inputs: Mapping[str, Any]) -> _Ask | None:
        """What a call of the program with these inputs asks for; None where no train example has them."""
        example_id = self._by_inputs.get(_inputs_key(inputs))
        if example_id is None:
            return None
        lm = next((p.lm for p in program.predictors() if p.lm is not None), None) or dspy.settings.lm
        kwargs = getattr(lm, "kwargs", {})
        temperature = float(kwargs.get("temperature") or 0.0)
        sample = int(kwargs.get("rollout_id") or 0) if temperature > 0 else 0
        prompts = self.prompts_of(program)
        return _Ask(prompts, Candidate(prompts).digest, example_id, sample, temperature)

    def _answer(self, asks: Sequence[_Ask]) -> list[Rehearsed]:
        """From memory, or run; what several ask for at once is run once."""
        keys = [ask.key for ask in asks]
        with self._lock:
            if self.failed is not None:
                raise self.failed
            self.asked += len(asks)
            self._used.update(keys)
            self._pay(keys)
            missing = [ask for ask, key in zip(asks, keys, strict=True) if key not in self._done]
        if missing:
            self._gatherer.request(missing)
        return [self._done[key] for key in keys]

    def _pay(self, keys: Sequence[str]) -> None:
        """Charge what an earlier process had run, batch by batch, when the search comes to it: as without a kill."""
        for key in keys:
            if (owed := self._owed.get(key)) is None:
                continue
            cost, batch = owed
            try:
                self.budget.reserve(rollouts=cost.rollouts)
            except BudgetExhausted as error:
                self.failed = error
                raise
            self.budget.charge(cost)
            for paid in batch:
                self._owed.pop(paid, None)

    def _run_batch(self, requests: Sequence[Sequence[_Ask]]) -> list[Any]:
        """All that came together; raises what a batch raises to each who asked."""
        if self.failed is not None:
            raise self.failed
        fresh = {ask.key: ask for asks in requests for ask in asks if ask.key not in self._done}
        try:
            for _ in range(1 + AGAIN):
                if not fresh:
                    break
                made = self._run(list(fresh.values()))
                self._done |= made
                fresh = {key: ask for key, ask in fresh.items() if key not in made}
        except BaseException as error:  # noqa: BLE001 - each who asked raises it, and so does the prompt lever
            raise self._fatal(error) from None
        if fresh:
            said = f"{len(fresh)} rollouts of the prompt lever got no score in {1 + AGAIN} attempts"
            raise self._fatal(InfrastructureError(f"{said}; the last: {self._why}"))
        return [None] * len(requests)

    def _run(self, asks: Sequence[_Ask]) -> dict[str, Rehearsed]:
        """One batch on the engine, charged and written down; those without a score are left out."""
        programs = {ask.digest: ask.prompts for ask in asks}
        with metered(self.engine, len(asks), self.budget) as meter, dspy.context(**self._outside):
            rollouts = run_together(
                self.parent.weights, self.task, self.engine, programs,
                [(a.digest, a.example_id, self._examples[a.example_id], a.sample, a.temperature) for a in asks],
                seed=self.seed, on_done=self._told, spared=SPARED,
            )  # fmt: skip
        self._why = next((r.reason for r in reversed(rollouts) if r.score is None), "")
        made = {
            ask.key: Rehearsed.of(rollout)
            for ask, rollout in zip(asks, rollouts, strict=True)
            if rollout.score is not None
        }
        entry = {"cost": asdict(meter.cost), "rollouts": {key: asdict(r) for key, r in made.items()}}
        self._journal.write(entry)
        return _rollouts_of(json.loads(json.dumps(entry)))  # as after a kill

    def _told(self, ended: int) -> None:
        """So many of the batch under way have ended. A pull that has failed, or was interrupted, waits for no more."""
        if self.failed is not None:
            raise self.failed
        done = len(self._done) + ended
        self.progress.update(done, max(self.planned, done), "rollouts of the prompt lever")

    def _fatal(self, error: BaseException) -> BaseException:
        self.failed = self.failed or error
        return self.failed

    def _shows(self, program: dspy.Module, name: str, demo: Mapping[str, Any]) -> bool:
        signature = dict(program.named_predictors())[name].signature
        return any(f in demo for f in signature.input_fields) and any(f in demo for f in signature.output_fields)


class RunAhead(BaseCallback):
    """Told by DSPy of an evaluation that begins: a student's is run as one batch, whatever the threads do then.

    What fails is kept in ``failed`` and raised by the first call.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        program, rows = inputs.get("program"), inputs.get("devset") or instance.devset
        if getattr(type(program), _REHEARSED, None) is self._rehearsal and self._rehearsal.failed is None:
            self._rehearsal.run_ahead(program, rows)


class _NotAsked:
    """The engine behind ``stand_in``: a student's calls do not reach it, and whatever does is a mistake."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal

    def __deepcopy__(self, memo: dict[int, Any]) -> _NotAsked:
        return self

    def complete(self, request: Any) -> Any:
        raise self._rehearsal._fatal(
            LeverError(
                "the optimizer asked the policy to write something, not to run the program: it needs a proposer "
                "(--prompt-model)"
            )
        )


def distinct_rows(task: Task) -> list[tuple[str, dspy.Example]]:
    """The (id, example) pairs of train; of those with equal inputs the first, since a program can't tell them apart."""
    rows: dict[str, tuple[str, dspy.Example]] = {}
    for example_id, example in task.examples("train"):
        rows.setdefault(_inputs_key(example.inputs()), (example_id, example))
    return list(rows.values())


def _inputs_key(inputs: Mapping[str, Any]) -> str:
    return json.dumps(plain(dict(inputs)), sort_keys=True, ensure_ascii=False)


def _rollouts_of(entry: Mapping[str, Any]) -> dict[str, Rehearsed]:
    return {key: Rehearsed.from_json(fields) for key, fields in entry["rollouts"].items()}
