"""Where the draws of a run go: beside the chains, to the CPU, or to a file on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core import check_kind
from ...distributions.parameters import Parameters

Keep = Literal["memory", "cpu"] | str | os.PathLike[str]
"""`memory`, `cpu`, or the path of a `.npy` file."""


class Store:
    """Draws `(chain, draw, *event)` and information `(chain, draw)`, filled a block at a time.

    Arguments:
        keep: Where the draws go; information goes to the device or, with a file, to memory.
        x: The positions of all chains: shape, dtype and device of what is to come.
        n_draws: Draws of each chain.
        parameters: Whose values are stored, where positions are the free numbers behind them.

    Raises:
        ValueError: If keep is neither `memory` nor `cpu` nor a new `.npy` file, or its dtype has
            no counterpart in NumPy.
        OSError: If the file cannot be written.
    """

    def __init__(
        self, keep: Keep, x: Tensor, n_draws: int, parameters: Parameters | None = None
    ) -> None:
        event = x.shape[1:] if parameters is None else (parameters.n_flat,)
        shape = (len(x), n_draws, *event)
        self._parameters = parameters
        self.info: Any = None
        self._shape, self._file = shape[:2], None
        self._device = x.device if keep == "memory" else torch.device("cpu")
        if (dtype := check_keep(keep, x.dtype)) is None:
            self.draws = torch.empty(shape, dtype=x.dtype, device=self._device)
        else:
            self._file = np.lib.format.open_memmap(keep, mode="w+", dtype=dtype, shape=shape)
            self.draws = torch.from_numpy(self._file)

    def write(self, where: slice, first: int, draws: list[Tensor], infos: list[Any]) -> None:
        """Store draws of the chains `where` from draw number `first` on."""
        if not draws:
            return
        if self.info is None:
            self.allocate(infos[0])
        rows = (where, slice(first, first + len(draws)))
        x = torch.stack(draws, 1)
        if self._parameters is not None:
            x = self._parameters.constrain(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        self.draws[rows] = x.to(self._device)
        for field, values in zip(self.info, zip(*infos, strict=True), strict=True):
            field[rows] = torch.stack(values, 1).to(self._device)

    def allocate(self, info: Any) -> None:
        """Make room for information like `info`."""
        rows = (torch.empty((*self._shape, *v.shape[1:]), dtype=v.dtype) for v in info)
        self.info = type(info)(*(v.to(self._device) for v in rows))

    def finish(self, n_draws: int) -> tuple[Tensor, Any]:
        """Return the first draws and their information; in a file the others become NaN."""
        if self._file is not None:
            if n_draws < self._shape[1]:
                self._file[:, n_draws:] = np.nan
            self._file.flush()
        info = type(self.info)(*(field[:, :n_draws] for field in self.info))
        return self.draws[:, :n_draws], info


def check_keep(keep: Keep, dtype: torch.dtype) -> np.dtype[Any] | None:
    """Return the dtype of a new file for draws, None for memory.

    Raises:
        ValueError: If keep is neither `memory` nor `cpu` nor a new `.npy` file, or the dtype has no
            counterpart in NumPy.
    """
    check_kind(keep, "keep", str | os.PathLike, "'memory', 'cpu' or the path of a .npy file")
    if keep in ("memory", "cpu"):
        return None
    path = Path(keep)
    if path.suffix != ".npy":
        raise ValueError(f"keep must be 'memory', 'cpu' or the path of a .npy file, got {path}")
    if path.exists():
        raise ValueError(f"{path} exists; choose another file for the draws, or remove it")
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise ValueError(
            f"a .npy file cannot hold {dtype}; keep the draws on the cpu, or run in float32"
        ) from None
