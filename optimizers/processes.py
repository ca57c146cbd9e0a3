"""The processes that train one pull together (as under ``torchrun``), or the only one. Knows ``torch.distributed``.

Every process holds the whole model and the same state. Rollouts are shared out by example and gathered, so that all
processes make the same batch of them; its rows are shared out for the backward passes, whose gradients are added up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from colever.errors import ColeverError, LeverError

T = TypeVar("T")
LONGEST = timedelta(hours=6)  # that one process waits for another, which may sample for so long
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # what torchrun says to each process


@dataclass(frozen=True)
class Team:
    """This process among ``size``."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Team:
        """As ``torch.distributed`` has it; one process where it is not in use."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def joined(cls, device: str) -> Team:
        """The same; a process that a launcher such as torchrun has started meets the others first."""
        import torch.distributed as dist

        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group(backend(device), timeout=LONGEST)
        return cls.current()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Within, accelerate finds in the environment what a launcher would have said, where there was none."""
        if self.size == 1 or "LOCAL_RANK" in os.environ:
            yield
            return
        before = {name: os.environ.get(name) for name in (*LAUNCHED, "MASTER_PORT")}
        os.environ.update(zip(LAUNCHED, map(str, (self.rank, self.rank, self.size, self.size)), strict=True))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``size``-th item: this process's."""
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """Each process's value, in order of rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gave in each process. An error in one of them is raised in all, so that none waits for ever.

        The others raise one of ours as what it is and any other as LeverError; both name the process.
        """
        done, error = None, None
        try:
            done = work()
        except Exception as failure:  # the boundary to the other processes: each of them raises it
            if self.size == 1:
                raise
            error = failure
        found = self.gather((done, None if error is None else self._told(error)))
        if error is not None:
            raise error
        if failed := next((e for _, e in found if e is not None), None):
            raise failed
        return [value for value, _ in found]  # type: ignore[misc]

    def _told(self, error: Exception) -> ColeverError:
        if isinstance(error, ColeverError):
            return type(error)(f"process {self.rank}: {error}")
        return LeverError(f"process {self.rank}: {type(error).__name__}: {error}")

    def agree(self, what: str, value: object) -> None:
        """Raises LeverError unless ``value`` is the same in all processes."""
        found = self.gather(value)
        if any(other != found[0] for other in found):
            raise LeverError(
                f"{what} is not the same in all processes: {', '.join(map(str, found))}; accepted: one folder that all "
                "of them can read"
            )

    def by_main(self, work: Callable[[], T]) -> T:
        """What ``work`` gave in the first process, which alone does it."""
        return self.together(lambda: work() if self.main else None)[0]  # type: ignore[return-value]

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Each gradient becomes its sum over the processes; one that some lack counts as 0, one that all lack stays.

        An optimizer takes no step on a parameter without a gradient, as where no row was of an adapter's predictor.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        trained = [p for p in parameters if p.requires_grad]
        have = [any(has) for has in zip(*self.gather([p.grad is not None for p in trained]), strict=True)]
        for p, has in zip(trained, have, strict=True):
            if has:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)


def backend(device: str) -> str:
    """What processes talk through whose models are on such a device; objects go through gloo in any case."""
    return "gloo" if device == "cpu" else f"cpu:gloo,{device}:nccl"


class OneProcess:
    """An ``accelerate.Accelerator`` as if this process were the only one: nothing is gathered and nothing reduced.

    TRL's loss gathers metrics by row. Processes compute different numbers of parts and rows, which such calls do not
    bear; what is worth knowing is joined once an update.
    """

    num_processes = 1

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, value: T) -> T:
        return value

    def reduce(self, value: T, *args: Any, **kwargs: Any) -> T:
        return value
