"""Work divided among processes: each has its rows of a batch; the result is that of one process.

Every process draws the same noise for the whole batch and keeps its own rows, so that the result
does not depend on the number of processes, except for rounding. Gradients of a training are summed
in one message per step rather than by `DistributedDataParallel`, which must be called once per
step from outside: objectives call a model several times and differentiate inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .randomness import Generator, NoiseSource
from .shapes import check_kind

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of the initialised process group, or this process alone.

    Drivers with an argument `processes=` give each process its share of the same draws, and return
    all draws in every process. They must be called in all processes with the same arguments; an
    error in one is raised in all.

    Attributes:
        rank: The number of this process.
        size: The number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Return those of the default process group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @classmethod
    def check(cls, processes: object) -> None:
        """Raise `ValueError` unless these are processes."""
        check_kind(processes, "processes", cls, "those of Processes.here()")

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

    def check_alone(self, what: str) -> None:
        """Raise `ValueError` if there are others, with which that cannot be done."""
        if not self.alone:
            raise ValueError(
                f"{what} in one process, but there are {self.size}: run it without torchrun"
            )

    def check_batch(self, size: int, what: str = "a batch of {} rows") -> None:
        """Raise `ValueError` unless there is a row of a batch for every process."""
        if size < self.size:
            raise ValueError(f"{what.format(size)} cannot be divided among {self.size} processes")

    def of_first(self, value: T) -> T:
        """Return what the first process has."""
        if self.alone:
            return value
        parts = [value]
        with self._message():
            dist.broadcast_object_list(parts, src=0)
        return parts[0]

    def check_alike(self, value: Any, what: str) -> None:
        """Raise `ValueError` in every process unless all have an equal value."""
        found = self._of_all(value)
        other = [rank for rank, each in enumerate(found) if each != found[0]]
        if other:
            raise ValueError(
                f"all processes must be given the same {what}; rank {other[0]} differs from rank 0"
            )

    def make_alike(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first."""
        if not self.alone:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def same_noise(self, generator: Generator | None) -> None:
        """Continue the noise from its state in the first process.

        Raises:
            ValueError: For the caller's own noise source, which is not divided.
        """
        if self.alone:
            return
        if isinstance(generator, NoiseSource):
            raise ValueError("a NoiseSource serves one process; pass a torch.Generator")
        mine = torch.default_generator if generator is None else generator
        mine.set_state(self.of_first(mine.get_state()))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one message for each dtype."""
        if self.alone:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            mine = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in mine])
            with self._message():
                dist.all_reduce(flat)
            for tensor, part in zip(mine, flat.split([t.numel() for t in mine]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))

    def gather(
        self, work: Callable[[], tuple[Sequence[Tensor], T]]
    ) -> tuple[list[Tensor], list[T]]:
        """Do the work of this process; return the results of all, tensors joined along their rows.

        Arguments:
            work: Returns tensors `(rows, ...)`, of the same number and other dimensions in each
                process, and any other object, which is returned as a list in the order of ranks.

        Raises:
            RuntimeError: If the work of another process failed; errors of this process are raised
                as they are.
            ConnectionError: If another process has ended.
        """
        try:
            mine, rest = work()
        except Exception as error:
            if not self.alone:
                self._of_all((f"{type(error).__name__}: {error}", None, None))
            raise
        if self.alone:
            return list(mine), [rest]
        found = self._of_all((None, [t.shape for t in mine], rest))
        for rank, (failed, shapes, _) in enumerate(found):
            if failed is None and [s[1:] for s in shapes] != [t.shape[1:] for t in mine]:
                failed = "it returned results of a different shape"
            if failed is not None:
                raise RuntimeError(f"process {rank} failed: {failed}")
        joined = []
        for i, tensor in enumerate(mine):
            parts = [
                tensor.contiguous() if rank == self.rank else tensor.new_empty(shapes[i])
                for rank, (_, shapes, _) in enumerate(found)
            ]
            with self._message():
                for rank, part in enumerate(parts):
                    dist.broadcast(part, src=rank)
            joined.append(torch.cat(parts))
        return joined, [each for _, _, each in found]

    def each(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what all tasks return, each done by one process; errors are as in `gather`."""
        mine = tasks[self.rank :: self.size]
        found = self.gather(lambda: ([], [task() for task in mine]))[1]
        return [found[i % self.size][i // self.size] for i in range(len(tasks))]

    def _of_all(self, value: T) -> list[T]:
        """Return what each process has."""
        found: list[Any] = [value] * self.size
        if not self.alone:
            with self._message():
                dist.all_gather_object(found, value)
        return found

    @contextmanager
    def _message(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(
                "another process has ended or no longer answers; what was trained or drawn so far "
                "is in the checkpoint or file, if there is one: continue with resume, with any "
                "number of processes"
            ) from error
