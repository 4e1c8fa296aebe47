"""Storage of the draws of a run: on the device of the chains or on the CPU; see `stream` for files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ...distributions.parameters import Parameters

Keep = Literal["memory", "cpu"] | str | os.PathLike[str]
"""`memory`, `cpu`, or the path of a `.npy` file."""


class Store:
    """Draws `(chain, draw, *event)` and information `(chain, draw)`, filled a block at a time.

    Arguments:
        device: Device of the draws.
        x: The positions of all chains, for shape and dtype of the draws.
        n_draws: Number of draws of each chain.
        parameters: Parameters whose values are stored, if positions are the unconstrained numbers.
    """

    caught: int | None = None
    """The signal that ended the run."""

    def __init__(
        self, device: torch.device, x: Tensor, n_draws: int, parameters: Parameters | None = None
    ) -> None:
        shape = (len(x), n_draws, *event_of(x, parameters))
        self._parameters, self._device, self._shape = parameters, device, shape[:2]
        self.info: Any = None
        self.draws = torch.empty(shape, dtype=x.dtype, device=device)

    def write(self, where: slice, first: int, draws: list[Tensor], infos: list[Any]) -> None:
        """Store draws of the chains `where` from draw number `first` on."""
        if not draws:
            return
        if self.info is None:
            self.allocate(infos[0])
        rows = (where, slice(first, first + len(draws)))
        self.draws[rows] = values_of(draws, self._parameters).to(self._device)
        for field, values in zip(self.info, zip(*infos, strict=True), strict=True):
            field[rows] = torch.stack(values, 1).to(self._device)

    def allocate(self, info: Any) -> None:
        """Make room for information like `info`."""
        rows = (torch.empty((*self._shape, *v.shape[1:]), dtype=v.dtype) for v in info)
        self.info = type(info)(*(v.to(self._device) for v in rows))

    def watching(self, tell: Callable[..., None] | None) -> Callable[..., None] | None:
        """Return what is to be called with the information of every step of a warm-up."""
        return tell

    def interruptible(self) -> AbstractContextManager[None]:
        """Within, a run can be interrupted at any moment."""
        return nullcontext()

    @property
    def due(self) -> bool:
        """Whether it is time to `save`."""
        return False

    def save(self, moving: Callable[[], Mapping[str, Any]]) -> None:
        """Save the state from which a killed run continues; in memory there is nothing to save."""

    def finish(self, n_draws: int) -> tuple[Tensor, Any]:
        """Return the first draws and their information."""
        info = type(self.info)(*(field[:, :n_draws] for field in self.info))
        return self.draws[:, :n_draws], info


def event_of(x: Tensor, parameters: Parameters | None) -> torch.Size:
    """Return the shape of a draw."""
    return x.shape[1:] if parameters is None else torch.Size((parameters.n_flat,))


def values_of(draws: list[Tensor], parameters: Parameters | None) -> Tensor:
    """Return draws of some chains, `(chain, n, *event)`; of named parameters their values."""
    x = torch.stack(draws, 1)
    if parameters is None:
        return x
    return parameters.constrain(x.flatten(0, 1)).unflatten(0, x.shape[:2])
