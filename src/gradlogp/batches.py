"""Mini-batches from memory or disk: checking, moments, and a shuffled order that can be resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import permutation

Data = Tensor | np.ndarray
"""In memory, or on disk as a NumPy memory map; `(N, *event)`."""

READ = 65536  # rows read at a time when all of a data set is looked at


def rows(data: Data, index: Any, like: Tensor) -> Tensor:
    """Return rows of data, from memory or disk, in the dtype and on the device of the model."""
    return _tensor(data[index]).to(like)


def _tensor(part: Data) -> Tensor:
    if isinstance(part, Tensor):
        return part
    if part.dtype.kind not in "fiub":
        raise ValueError(f"data must be numbers, got dtype {part.dtype}")
    return torch.from_numpy(np.array(part))


def check_data(data: Data, event_shape: torch.Size) -> None:
    """Raise `ValueError` unless data is `(N, *event)`, N ≥ 2, and finite."""
    if tuple(data.shape[1:]) != tuple(event_shape) or data.ndim < 2:
        raise ValueError(
            f"data must have shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    if len(data) < 2:
        raise ValueError(f"a score cannot be learned from {len(data)} sample(s); give at least 2")
    bad: list[int] = []
    for start in range(0, len(data), READ):
        finite = torch.isfinite(_tensor(data[start : start + READ])).flatten(1).all(1)
        bad.extend((start + (~finite).nonzero().flatten()).tolist())
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(data)} rows have NaN or infinite entries (first: row {bad[0]}); "
            "drop them first"
        )


def moments(data: Data, event_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation: per column of vectors, over all pixels of images.

    Raises:
        ValueError: If a column (or the whole) is constant.
    """
    axes = (0,) if len(event_shape) == 1 else tuple(range(len(event_shape) + 1))
    total, count = np.zeros(()), 0
    for start in range(0, len(data), READ):
        part = _tensor(data[start : start + READ]).double().cpu().numpy()
        total, count = total + part.sum(axes), count + part.size
    n = count / max(1, total.size)
    mean, squares = total / n, np.zeros(())
    for start in range(0, len(data), READ):
        part = _tensor(data[start : start + READ]).double().cpu().numpy()
        squares = squares + np.square(part - mean).sum(axes)
    std = np.sqrt(squares / n)
    constant = np.atleast_1d(std <= 1e-12 * np.maximum(1e-300, np.abs(mean)))
    if constant.any():
        where = (
            "the data is"
            if std.ndim == 0
            else f"column(s) {np.flatnonzero(constant).tolist()} are"
        )
        raise ValueError(f"{where} constant: there is no density along them; drop them")
    expand = lambda v: torch.as_tensor(v).expand(event_shape).clone()
    return expand(mean), expand(std)


class Batches:
    """Rows in an order shuffled anew each epoch; a last, smaller batch is left out.

    Arguments:
        n: Number of rows.
        size: Rows a batch, at most n.
        generator: Where the order comes from.
    """

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, min(size, n), generator
        self.order, self.position = permutation(n, generator), 0

    def next(self) -> Tensor:
        """Return the row numbers of the next batch."""
        if self.position + self.size > self.n:
            self.order, self.position = permutation(self.n, self.generator), 0
        index = self.order[self.position : self.position + self.size]
        self.position += self.size
        return index

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"order": self.order, "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if len(state["order"]) != self.n:
            raise ValueError(
                f"the checkpoint was made with {len(state['order'])} rows of data, got {self.n}"
            )
        self.order, self.position = state["order"], state["position"]
