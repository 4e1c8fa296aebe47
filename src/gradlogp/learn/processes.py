"""One training by many processes: each has its rows of every batch, and all take the same step.

Batches, noise and times of the whole batch are drawn in every process alike, and each keeps its own
rows: what is learned does not depend on how many there are, but for rounding. Gradients are added up in
one message a step rather than by `DistributedDataParallel`, which has to be entered once a step from
outside: objectives call a model several times and differentiate inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes of the group that is initialised, or this one alone.

    Attributes:
        rank: The number of this one.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Return those of the default process group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def alone(self) -> bool:
        """Whether there is one only."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return which of n rows are those of this process."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def check_batch(self, size: int) -> None:
        """Raise `ValueError` unless there is a row of a batch for every process."""
        if size < self.size:
            raise ValueError(
                f"batches of {size} rows cannot be divided among {self.size} processes"
            )

    def of_first(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.alone:
            return value
        parts = [value]
        dist.broadcast_object_list(parts, src=0)
        return parts[0]

    def check_alike(self, value: Any, what: str) -> None:
        """Raise `ValueError` in every process unless all have an equal value."""
        if self.alone:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        other = [rank for rank, each in enumerate(found) if each != found[0]]
        if other:
            raise ValueError(
                f"all processes must be given the same {what}; rank {other[0]} has another than rank 0"
            )

    def make_alike(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first."""
        if not self.alone:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one message for each dtype."""
        if self.alone:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            mine = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in mine])
            try:
                dist.all_reduce(flat)
            except RuntimeError as error:
                raise ConnectionError(
                    f"another process of this training has ended ({str(error).splitlines()[0]}); what "
                    "was learned is in the checkpoint, if there is one: go on with resume=True"
                ) from None
            for tensor, part in zip(mine, flat.split([t.numel() for t in mine]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))
