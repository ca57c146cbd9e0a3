"""A pull whose weights break or whose disk fills up says so, and the same call goes on to the undisturbed end."""

from __future__ import annotations

import threading

import pytest
import torch
from small_disk import small_disk
from test_weight_lever import improve, make_task, parameters, settings, vowel_share

from colever.errors import LeverError
from colever.optimizers.checkpoint import SEAL
from colever.types import Weights

pytestmark = pytest.mark.usefixtures("base_weights")


class Counted:
    """The rubric of the tests, which counts its calls and does something in one of them."""

    def __init__(self, at: int = -1, then=lambda: None) -> None:
        self.calls, self.at, self.then = 0, at, then
        self._lock = threading.Lock()

    def __call__(self, example, prediction, steps) -> float:
        with self._lock:
            self.calls += 1
            if self.calls == self.at:
                self.then()
        return vowel_share(example, prediction, steps)


def undisturbed(engine, folder, how):
    whole = improve(engine, folder, how)
    engine.load(Weights())
    return whole


def left_over(folder) -> list[str]:
    """What a failed write must not leave."""
    open_checkpoints = [p for p in folder.glob("training/checkpoint-*") if not (p / SEAL).is_file()]
    return [p.name for p in (*open_checkpoints, *folder.glob("**/*.tmp"))]


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_weights_that_break_in_an_update_are_not_kept(engine, tmp_path, peft):
    how = settings(updates=5, save_every=2, peft=peft)
    whole = undisturbed(engine, tmp_path / "whole", how)
    before = parameters(engine)
    breaks = Counted(at=3 * 8 + 1, then=lambda: engine.model.model.norm.weight.data.fill_(float("nan")))
    with pytest.raises(LeverError, match=r"^update 3: the loss is nan; the update was not applied\. Try a lower learn"):
        improve(engine, tmp_path / "cut", how, make_task(breaks))
    assert engine.version == "base"
    assert all(torch.equal(before[n], p) for n, p in parameters(engine).items())
    sound = Counted()
    again = improve(engine, tmp_path / "cut", how, make_task(sound))
    assert sound.calls == 3 * 8  # updates 2, 3 and 4: it went on from the checkpoint
    assert again.candidate.weights.digest == whole.candidate.weights.digest
    assert again.metrics["loss"] == whole.metrics["loss"]


@pytest.mark.parametrize(
    ("rate", "said"),
    [(float("inf"), "^update 0: it left .* not finite: they are not saved"), (1e30, "^update 1: .*not finite|is nan")],
)
def test_a_learning_rate_that_breaks_the_weights_is_named_and_a_lower_one_starts_anew(engine, tmp_path, rate, said):
    how = settings(updates=3, save_every=1)
    whole = undisturbed(engine, tmp_path / "whole", how)
    with pytest.raises(LeverError, match=said) as error:
        improve(engine, tmp_path / "cut", settings(updates=3, save_every=1, learning_rate=rate))
    assert "Try a lower learning_rate" in str(error.value)
    assert engine.version == "base"
    assert left_over(tmp_path / "cut") == []
    assert improve(engine, tmp_path / "cut", how).candidate.weights.digest == whole.candidate.weights.digest


def test_the_last_update_too_must_leave_weights_that_are_finite(engine, tmp_path):
    with pytest.raises(LeverError, match=r"^update 0: it left"):
        improve(engine, tmp_path, settings(updates=1, save_every=9, learning_rate=float("inf")))
    assert not (tmp_path / "weights").exists()


def test_smaller_parts_go_on_from_the_checkpoint_of_larger_ones(engine, tmp_path):
    """As after an error for want of memory: how an update is split does not change what it computes."""
    how = settings(updates=4, save_every=2)
    whole = undisturbed(engine, tmp_path / "whole", how)
    breaks = Counted(at=2 * 8 + 1, then=lambda: engine.model.model.norm.weight.data.fill_(float("nan")))
    with pytest.raises(LeverError):
        improve(engine, tmp_path / "cut", how, make_task(breaks))
    sound = Counted()
    again = improve(engine, tmp_path / "cut", settings(updates=4, batch_tokens=64, save_every=1), make_task(sound))
    assert sound.calls == 2 * 8
    losses = [[value for _, value in pull.metrics["loss"]] for pull in (again, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(("changes", "megabytes", "what", "calls"), [
    ({"save_every": 1}, 2.0, "the checkpoint after 2 updates", 3 * 8),  # the second does not fit
    ({"save_every": 1, "peft": "lora"}, 1.2, "the checkpoint after 3 updates", 2 * 8),
    ({"save_every": 9}, 1.4, "the trained weights", 0),  # the checkpoint of the end fits, they do not
    ({"save_every": 9, "validation": 2}, 0.2, "the best weights so far", 4 * 8 + 2 * 2),  # at the first look
])  # fmt: skip
def test_a_full_disk_is_named_and_the_same_call_goes_on(engine, tmp_path, changes, megabytes, what, calls):
    how = settings(**changes)
    whole = undisturbed(engine, tmp_path / "whole", how)
    with small_disk(tmp_path / "cut", megabytes) as disk:
        with pytest.raises(LeverError) as error:
            improve(engine, disk.folder, how)
        said = str(error.value)
        assert said.startswith(f"{what} cannot be written to {disk.folder}")
        assert "the disk is full, 0." in said
        assert f"Free disk space at {disk.folder}" in said
        assert engine.version == "base"
        assert left_over(disk.folder) == []
        disk.grow(64)
        sound = Counted()
        again = improve(engine, disk.folder, how, make_task(sound))
        assert sound.calls == calls
        assert again.candidate.weights.digest == whole.candidate.weights.digest
        assert again.metrics["loss"] == whole.metrics["loss"]
        assert again.notes == whole.notes


def test_what_is_no_full_disk_is_not_called_one(engine, tmp_path):
    (tmp_path / "weights").touch()  # a file where the folder goes
    with pytest.raises(LeverError, match=r"^the trained weights cannot be written to .*Not a directory.*\. Mend that"):
        improve(engine, tmp_path, settings(updates=1))
    assert left_over(tmp_path) == []
