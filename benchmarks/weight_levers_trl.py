"""TRL's stock GRPOTrainer on a program's last predictor: its prompts as the untrained program makes them, and a reward.

Knows a task, an engine and TRL. The trainer's class is not modified: it samples with transformers' ``generate``,
masks, scales and trains as it does for everybody. The prompts are fixed before training, as TRL's data are: they hold
what the earlier predictors of the *untrained* program wrote, greedily. A completion is scored by the task's rubric
through the program itself: the earlier calls answer as they did then, the last one with the completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import torch
from datasets import Dataset
from dspy import lm15
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from colever.config import WeightSettings
from colever.engines.calls import current_call
from colever.engines.lm import engine_lm
from colever.engines.transformers import TransformersEngine
from colever.errors import LeverError
from colever.optimizers.grpo_settings import rate
from colever.optimizers.trainer_loop import quiet
from colever.pipelines.rollout import run_rollouts
from colever.tasks.task import Task

ROWS = 32  # completions per forward and backward pass


@dataclass(frozen=True)
class LastCall:
    """What the last predictor is asked for one train example, and what was answered before it."""

    example: dspy.Example
    prompt: str
    before: tuple[str, ...]


def last_calls(task: Task, engine: TransformersEngine) -> list[LastCall]:
    """One per train example on which the untrained program comes as far as its last predictor, greedily.

    Raises LeverError if a prompt's text is not tokenized as it was for the rollout.
    """
    program = task.program()
    last = list(dict(program.named_predictors()))[-1]
    examples = task.examples("train")
    rollouts = run_rollouts(
        program, examples, lm=engine_lm(engine), score=task.score, fail=task.fail, max_tokens=task.max_tokens
    )
    calls = []
    for (_, example), rollout in zip(examples, rollouts, strict=True):
        if not rollout.steps or rollout.steps[-1].predictor != last:
            continue
        *before, asked = (step.completion for step in rollout.steps)
        prompt = engine.tokenizer.decode(list(asked.prompt_ids), skip_special_tokens=False)
        if tuple(engine.tokenizer(text=prompt)["input_ids"]) != asked.prompt_ids:
            raise LeverError(f"the prompt of train example {rollout.example_id} is tokenized in another way as text")
        calls.append(LastCall(example, prompt, tuple(completion.text for completion in before)))
    return calls


class Script:
    """An engine that answers the calls of a rollout from a list of texts, by the rollout's example id."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._texts: dict[str, Iterator[str]] = {name: iter(answers) for name, answers in texts.items()}

    def complete(self, request: lm15.Request) -> lm15.Response:
        recorder = current_call.get()
        assert recorder is not None
        text = next(self._texts[str(recorder.seed_key[2])])
        message = lm15.Message.assistant([lm15.TextPart(text)])
        usage = lm15.Usage(input_tokens=0, output_tokens=0)
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def __deepcopy__(self, memo: dict[int, Any]) -> Script:
        return self


def rewards(task: Task, calls: Sequence[LastCall], completions: Sequence[str]) -> list[float]:
    """The rubric's score of the program's rollout that ends with each completion; a policy failure has the lowest."""
    scripts = {str(i): (*call.before, text) for i, (call, text) in enumerate(zip(calls, completions, strict=True))}
    rollouts = run_rollouts(
        task.program(),
        [(name, call.example) for name, call in zip(scripts, calls, strict=True)],
        lm=dspy.LM("script/script", engine=Script(scripts), cache=False, num_retries=0),
        score=task.score,
        fail=task.fail,
        concurrency=1,
    )
    if broken := [r.reason for r in rollouts if r.score is None]:
        raise LeverError(f"{len(broken)} completions got no score; the first: {broken[0]}")
    return [r.score.total for r in rollouts if r.score is not None]


def train(task: Task, engine: TransformersEngine, s: WeightSettings, seed: int, folder: Path) -> dict[str, Any]:
    """Train the engine's own model in place; says how many train examples gave a prompt and how rewards went."""
    calls = last_calls(task, engine)
    torch.manual_seed(seed)
    curve: list[float] = []

    def reward(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any) -> list[float]:
        texts = [_text(engine, ids) for ids in completion_ids]
        found = rewards(task, [calls[i] for i in row], texts)
        curve.append(sum(found) / len(found))
        return found

    model = engine.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.learning_rate, weight_decay=0.0, fused=True)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments(s, task.max_tokens, seed, folder, engine.device),
        train_dataset=Dataset.from_dict({"prompt": [c.prompt for c in calls], "row": list(range(len(calls)))}),
        processing_class=engine.tokenizer,
        optimizers=(optimizer, LambdaLR(optimizer, lambda u: rate(u, s.updates, s.warmup, s.learning_rate_schedule))),
    )
    trainer.remove_callback(PrinterCallback)
    with quiet():
        trainer.train()
    engine.touched()
    return {"prompts": len(calls), "reward": curve}


def arguments(s: WeightSettings, max_tokens: int, seed: int, folder: Path, device: torch.device) -> GRPOConfig:
    """The weight lever's settings in TRL's words; the rest are TRL's defaults, but for float32 and silence."""
    rollouts = s.examples_per_update * s.group_size
    rows = next(n for n in range(min(ROWS, rollouts), 0, -1) if rollouts % n == 0)
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=s.updates,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=rollouts // rows,  # all of an update's completions are sampled at once
        num_generations=s.group_size,
        max_completion_length=max_tokens,
        learning_rate=s.learning_rate,
        max_grad_norm=s.max_grad_norm,
        temperature=s.temperature,
        beta=s.beta,
        loss_type=s.loss,
        scale_rewards=s.scale_rewards,
        importance_sampling_level=s.importance_sampling_level,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def _text(engine: TransformersEngine, ids: Sequence[int]) -> str:
    """A completion as the engine gives it to a program: without its end token."""
    kept = list(ids[:-1] if ids and ids[-1] in engine.end_ids else ids)
    return engine.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
