"""DSPy's doors to training: a ``Provider`` on an engine, and language models that have one.

Knows DSPy's interface; what training is lies in ``finetune`` and ``reinforce``. With it ``dspy.BootstrapFinetune``,
DSPy's GRPO and ``dspy.BetterTogether`` run on ``colever.engine_lm(...)`` as they stand.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus, get_finetune_directory

from colever.engines import lm as engine_lms
from colever.errors import UsageError
from colever.types import Weights

if TYPE_CHECKING:
    from colever.engines.transformers import TransformersEngine


def engine_lm(
    model: str | Path | TransformersEngine,
    *,
    weights: Weights | None = None,
    temperature: float = 0.0,
    max_tokens: int = 256,
    **options: Any,
) -> dspy.LM:
    """A ``dspy.LM`` that runs in this process, uncached, and that DSPy can train; ``options`` go to the engine.

    It answers with ``weights`` (what the engine holds now unless given), whatever is trained on the engine later:
    its ``model`` names them. Raises UsageError for a model that cannot be loaded.
    """
    lm = engine_lms.engine_lm(model, temperature=temperature, max_tokens=max_tokens, **options)
    lm.provider = EngineProvider(lm.engine)
    lm.model = lm.engine.named.name(weights or lm.engine.weights)
    return lm


def seed_lm(**options: Any) -> dspy.LM:
    """A ``dspy.LM`` on the seed model; see ``engine_lm``."""
    return engine_lm("seed", **options)


def weights_home(given: str | Path | None) -> Path:
    """A new folder for trained weights below ``given``, or below DSPy's own (``DSPY_FINETUNEDIR``)."""
    home = Path(given) if given is not None else Path(get_finetune_directory()) / "colever"
    return home.resolve() / uuid.uuid4().hex[:16]


class FinetuneJob(TrainingJob):
    """A future with the LM on the trained weights, or, as DSPy wants it, with the exception; ``losses`` per update."""

    losses: tuple[float, ...] = ()

    def status(self) -> TrainingStatus:
        """In DSPy's words."""
        if not self.done():
            return TrainingStatus.running
        return TrainingStatus.failed if isinstance(self.result(), Exception) else TrainingStatus.succeeded

    def cancel(self) -> bool:
        """False: supervised training runs to its end."""
        return False


class EngineProvider(Provider):
    """Training of one engine's own model; a copy, deep or not, is the provider itself."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__()
        self.engine = engine
        self.finetunable = self.reinforceable = True
        self.TrainingJob = FinetuneJob
        self.ReinforceJob: Any = self._reinforce_job

    @staticmethod
    def launch(lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Nothing to start: the engine is there."""

    @staticmethod
    def kill(lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None) -> None:
        """End a reinforcement job that was left behind; weights and engine stay."""
        from colever.optimizers.reinforce import end_job

        end_job(lm.engine)

    def finetune(  # type: ignore[override]  # DSPy calls it on the instance
        self,
        job: FinetuneJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The model name of new weights, trained from those that ``model`` names; the engine keeps what it held.

        Raises UsageError for data or ``train_kwargs`` that cannot be used, LeverError where training fails.
        """
        from colever.optimizers.dspy_settings import FinetuneSettings, checked
        from colever.optimizers.finetune import finetune
        from colever.optimizers.reinforce import end_job

        if train_data_format != TrainDataFormat.CHAT:
            raise UsageError(f"train_data_format {train_data_format!r}; accepted: {TrainDataFormat.CHAT.value!r}")
        settings = checked(FinetuneSettings, train_kwargs or {}, "train_kwargs")
        end_job(self.engine)
        with self.engine.named.held():
            before = self.engine.weights
            parent = self.engine.named.find(model) or before
            chats = [row["messages"] for row in train_data]
            weights, losses = finetune(self.engine, parent, chats, settings, weights_home(settings.output_dir))
            self.engine.load(before)
        job.losses = tuple(losses)
        return self.engine.named.name(weights)

    def _reinforce_job(self, lm: dspy.LM, train_kwargs: dict[str, Any] | None = None) -> Any:
        from colever.optimizers.reinforce import EngineReinforceJob

        home = weights_home((train_kwargs or {}).get("output_dir"))
        return EngineReinforceJob(lm, train_kwargs, self.engine, home)

    def __copy__(self) -> EngineProvider:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineProvider:
        return self
