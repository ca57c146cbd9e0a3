"""A model whose parameters, gradients and optimizer state are shared out among processes, by PyTorch's FSDP.

What is trained is a *twin* of the engine's model: the same modules around the same values, each process holding its
share (``fully_shard``, layer by layer). The engine's own model, which samples and is saved, stays a plain one: its
memory is there while it is whole, inside ``whole``, and is given back while the twin is trained. So nothing that
samples, saves or loads weights knows of shares, and nothing has to be undone when a pull ends.

Knows torch and a Hugging Face model, with adapters or without; nothing of rows, losses or updates. Everything here but
``take`` is done by all processes at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from colever.errors import UsageError
from colever.optimizers.processes import Team


class Shards:
    """``twin``: the sharded model that is trained. ``plain``: the engine's, which is whole inside ``whole`` alone."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self._device = next(plain.parameters()).device
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # where FSDP puts what it gathers
        self._mesh = init_device_mesh(self._device.type, (Team.current().size,))
        self.twin = copy.deepcopy(plain, {id(p): p for p in plain.parameters()})  # other modules, the same parameters
        self.share_out(self.twin)
        self._free()

    def share_out(self, model: Any) -> None:
        """Shard ``model``, each of its blocks apart, in place; its gradients become sums over the processes."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        kinds = set(getattr(base, "_no_split_modules", None) or ())
        blocks = [m for m in base.modules() if type(m).__name__ in kinds]
        if not blocks:
            raise UsageError(
                f"training.sharding=fsdp: {type(base).__name__} does not say which blocks it is made of; accepted: none"
            )
        for part in (*blocks, base):
            shared = fully_shard(part, mesh=self._mesh, reshard_after_forward=True)
            shared.set_gradient_divide_factor(1.0)
            shared.set_force_sum_reduction_for_comms(True)  # gloo knows no other reductions
        for part in (base, *blocks):  # PEFT freezes adapters for a while: what can be trained is settled before
            part.unshard()
            part.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, the engine's model holds the twin's values."""
        self.fill()
        try:
            yield
        finally:
            self._free()

    def fill(self) -> None:
        """The engine's model gets the twin's values."""
        shares = dict(self.twin.named_parameters())
        for name, parameter in self.plain.named_parameters():
            parameter.data = _full(shares[name].detach()).contiguous()

    def take(self) -> None:
        """The twin's values become those of the engine's model, which is whole; each process takes its share."""
        shares = dict(self.twin.named_parameters())
        for name, parameter in self.plain.named_parameters():
            shares[name].data.to_local().copy_(self._share(parameter.data, shares[name]).to_local())

    def _share(self, value: torch.Tensor, like: Any) -> Any:
        return distribute_tensor(value, self._mesh, like.placements, src_data_rank=None)

    def _free(self) -> None:
        for parameter in self.plain.parameters():
            parameter.data = parameter.data.new_empty(0)

    def lose(self) -> None:
        """Leave the engine's model with room for other values and none of its own; not done together."""
        shapes = {name: share.shape for name, share in self.twin.named_parameters()}
        for name, parameter in self.plain.named_parameters():
            parameter.data = parameter.data.new_empty(shapes[name])

    # --- the optimizer's state, as one process has it --------------------------------------------------

    def gathered(self, optimizer: Any) -> dict[str, Any]:
        """``optimizer.state_dict()`` of whole tensors; in the first process, the others have none."""
        made = optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for place, values in made["state"].items():
            whole = {name: _full(value) for name, value in values.items()}
            if Team.current().main:
                state[place] = {name: value.cpu() for name, value in whole.items()}
        return {**made, "state": state}

    def parted(self, state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        """What ``gathered`` gave, each tensor that is shaped like its parameter as this process's share of it."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parted = {
            place: {
                name: self._share(value.to(self._device), parameters[place]).clone()  # not the file's own memory
                if value.dim() and value.shape == parameters[place].shape
                else value
                for name, value in values.items()
            }
            for place, values in state["state"].items()
        }
        return {**state, "state": parted}


@contextmanager
def shared_out(model: Any, sharding: str) -> Iterator[Shards | None]:
    """``model`` shared out while the block runs, or None where it is not to be; whole again behind it.

    Where the block raises, the values are lost: the others may not be there to give theirs.
    """
    if sharding == "none" or Team.current().size == 1:
        yield None
        return
    shards = Shards(model)
    try:
        yield shards
        shards.fill()
    except BaseException:  # an interrupt too: what is loaded next needs somewhere to go
        shards.lose()
        raise


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor that is shared out, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
