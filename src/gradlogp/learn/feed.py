"""The data of a training step: rows in our order, augmented by a function, encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..core import Processes, check_kind, check_same_shape
from ..noise.coordinates import Data, pieces
from ..scores.model import ScoreModel
from .batches import Batches, rows
from .held_out import encoded
from .mapped import Mapped

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""augment(x, generator) -> like x: rows `(B, *event)` in the units of the data, changed at random."""


class Feed:
    """The rows of one batch after the other, in model coordinates.

    Data in memory are encoded once, in place; data on disk, from a dataset or changed by a
    function are encoded batch by batch. The function sees the whole batch in every process, so
    that its random numbers do not depend on the number of processes.

    Arguments:
        model: The model with the coordinates, dtype and device to use; its frame must be fitted.
        data: `(N, *event)`.
        size: Rows per batch.
        augment: The function, or None.
        processes: The processes of the training.
        seed: Seed of the order, and of the random items of a dataset; the function has a different
            one.
    """

    def __init__(
        self, model: ScoreModel, data: Data, size: int, augment: Augment | None,
        processes: Processes, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.data, self.augment, self.processes = model, data, augment, processes
        self.seed = seed
        self.like = next(p for p in model.parameters() if p.requires_grad)
        self.batches = Batches(len(data), size, torch.Generator().manual_seed(seed))
        self.augmenting = torch.Generator(self.like.device).manual_seed(seed + 3)
        self.ahead: Iterator[Tensor] | None = None
        self.z: Tensor | None = None
        if isinstance(data, Tensor) and augment is None:
            parts = (rows(part, slice(None), part) for _, part in pieces(data))
            self.z = torch.cat([model.coordinates.encode(x).to(self.like.dtype) for x in parts])

    def next(self, step: int) -> tuple[Tensor, Tensor, slice]:
        """Return the rows of this process, the numbers of all rows in the batch, and those of its own.

        Arguments:
            step: The number of the step, from 1.
        """
        if isinstance(self.data, Mapped) and self.ahead is None:
            self.ahead = self.data.batches(self._orders(step, self.batches.copy()), self.seed)
        whole = self.batches.next()
        mine = self.processes.rows(len(whole))
        if self.z is not None:
            own, held = (
                whole[mine].to(self.z.device, non_blocking=True),
                self.z.device.type == "cpu",
            )
            return self.z[own].to(self.like.device, non_blocking=held), whole, mine
        if self.ahead is not None:
            x = rows(next(self.ahead), slice(None), self.like)
        else:
            x = rows(self.data, whole[self._wanted(len(whole))], self.like)
        if self.augment is not None:
            changed = self.augment(x, self.augmenting)
            check_kind(changed, "the return value of augment", Tensor, "a tensor like its rows")
            check_same_shape(changed, x, "augment")
            x = changed[mine]
        return encoded(self.model, x), whole, mine

    def _wanted(self, n: int) -> slice:
        return self.processes.rows(n) if self.augment is None else slice(None)

    def _orders(self, step: int, batches: Batches) -> Iterator[tuple[int, Tensor, slice]]:
        for number in count(step):
            index = batches.next()
            yield number, index, self._wanted(len(index))

    def close(self) -> None:
        """End the workers of a loader, which in a cycle of garbage would be waited for, 5 s each."""
        self.ahead = None

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"batches": self.batches.state(), "augmenting": self.augmenting.get_state()}

    def restore(self, state: dict[str, Any], seed: int | None = None) -> None:
        """Go on from a state, of a run of this seed."""
        self.ahead, self.seed = None, self.seed if seed is None else seed
        self.batches.restore(state["batches"])
        self.augmenting.set_state(state["augmenting"])
