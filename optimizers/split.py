"""A trial's rollouts, shared out between its rounds: the two levers meet at one cost, whatever the schedule.

Knows settings and counts; runs nothing. What a prompt round takes is an upper bound (its lever's ``planned``), what a
weight round takes is exact where it does not stop early, so a trial costs at most what it was given, nearly.
"""

from __future__ import annotations

from collections.abc import Callable

from colever.config import LEAST_CANDIDATES, MINIBATCH, PromptSettings, WeightSettings

Planned = Callable[[PromptSettings], int]  # the rollouts of a prompt round with these settings
MOST = 1024  # combinations of a prompt round
MOST_ROLLOUTS = 2**20  # of one that is told how many
LEAST = 4  # examples on which combinations are compared


def share_out(
    rollouts: int,
    split: float,
    pulls: tuple[int, int],
    prompt: PromptSettings,
    weights: WeightSettings,
    planned: Planned,
) -> tuple[PromptSettings, WeightSettings]:
    """Settings with which ``pulls`` (of prompts, of weights) take about ``rollouts``, ``split`` of them for prompts.

    A trial of one lever gets all of them. Prompt rounds get as many ``candidates`` as fit (or ``rollouts``, where that
    is what their way goes by), and fewer examples where not even the least of them do; weight rounds get as many
    ``updates`` as fit, at least one.
    """
    prompts, trainings = pulls
    part = split if prompts and trainings else float(bool(prompts))
    if prompts:
        prompt = _fitting(prompt, int(rollouts * part / prompts), planned)
    if trainings:
        each = rollouts * (1 - part) / trainings
        looks = weights.validation  # the first look, then one every so many updates
        update = weights.examples_per_update * weights.group_size + weights.validation / weights.validate_every
        updates = max(1, int((each - looks) / update))
        weights = weights.model_copy(update={"updates": updates})
    return prompt, weights


def _fitting(prompt: PromptSettings, most: int, planned: Planned) -> PromptSettings:
    """As many candidates as ``most`` rollouts allow; with the fewest of them, fewer examples."""
    bare = _least(prompt)
    while planned(bare) > most and max(bare.screen, bare.examples) > LEAST:
        smaller = {name: max(LEAST, round(0.8 * getattr(bare, name))) for name in ("screen", "examples")}
        bare = _least(bare.model_copy(update=smaller))
    size = _size(prompt)
    low, high = getattr(bare, size), MOST if size == "candidates" else MOST_ROLLOUTS
    while low < high:
        middle = (low + high + 1) // 2
        fits = planned(bare.model_copy(update={size: middle})) <= most
        low, high = (middle, high) if fits else (low, middle - 1)
    return bare.model_copy(update={size: low})


def _size(prompt: PromptSettings) -> str:
    """The setting that a round's length follows from; a user's own optimizer is only told a number."""
    return "rollouts" if prompt.way == "gepa" or ":" in prompt.way else "candidates"


def _least(prompt: PromptSettings) -> PromptSettings:
    """With the shortest search that the way takes: of gepa, one proposal."""
    size = _size(prompt)
    fewest = LEAST_CANDIDATES.get(prompt.way, 0) if size == "candidates" else prompt.examples + 2 * MINIBATCH
    return prompt.model_copy(update={size: fewest})
