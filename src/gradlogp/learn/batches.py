"""Mini-batches from memory or disk: checking, moments, and a shuffled order that can be resumed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import permutation

Data = Tensor | np.ndarray
"""In memory, or on disk as a NumPy memory map; `(N, *event)`."""

READ = 2**23  # entries read at a time when all of a data set is looked at


def rows(data: Data, index: Any, like: Tensor) -> Tensor:
    """Return rows of data, from memory or disk, in the dtype and on the device of the model."""
    return _tensor(data[index]).to(like)


def _tensor(part: Data) -> Tensor:
    real = not part.is_complex() if isinstance(part, Tensor) else part.dtype.kind in "fiub"
    if not real:
        raise ValueError(f"data must be real numbers, got dtype {part.dtype}")
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def _pieces(data: Data) -> Iterator[tuple[int, Tensor]]:
    """Yield all of data in pieces, each with the number of its first row."""
    step = max(1, READ // max(1, math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        yield start, _tensor(data[start : start + step])


def check_data(data: Data, event_shape: torch.Size) -> None:
    """Raise `ValueError` unless data is `(N, *event)`, N ≥ 2, and finite."""
    if not isinstance(data, Tensor | np.ndarray):
        raise ValueError(f"data must be a tensor or a NumPy array, got {type(data).__name__}")
    if tuple(data.shape[1:]) != tuple(event_shape) or data.ndim < 2:
        raise ValueError(
            f"data must have shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    if len(data) < 2:
        raise ValueError(f"a score cannot be learned from {len(data)} sample(s); give at least 2")
    bad: list[int] = []
    for start, part in _pieces(data):
        finite = torch.isfinite(part).flatten(1).all(1)
        bad.extend((start + (~finite).nonzero().flatten()).tolist())
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(data)} rows have NaN or infinite entries (first: row {bad[0]}); "
            "drop them first"
        )


def check_labels(labels: Tensor | None, n: int, name: str) -> None:
    """Raise `ValueError` unless labels are None or int64 `(n,)`."""
    if labels is not None and (labels.shape != (n,) or labels.dtype != torch.int64):
        raise ValueError(
            f"{name} must be int64 of shape ({n},), got {labels.dtype} {tuple(labels.shape)}"
        )


def moments(
    data: Data, event_shape: torch.Size, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation: per column of vectors, over all pixels of images.

    Raises:
        ValueError: If a column (or the whole) is constant, or out of the range of `dtype`.
    """
    axes = (0,) if len(event_shape) == 1 else tuple(range(len(event_shape) + 1))
    total, count = np.zeros(()), 0
    for _, part in _pieces(data):
        total, count = total + part.double().cpu().numpy().sum(axes), count + part.numel()
    n = count / max(1, total.size)
    mean, squares = total / n, np.zeros(())
    for _, part in _pieces(data):
        with np.errstate(over="ignore"):
            squares = squares + np.square(part.double().cpu().numpy() - mean).sum(axes)
    std = np.sqrt(squares / n)
    constant = np.atleast_1d(std <= 1e-12 * np.maximum(1e-300, np.abs(mean)))
    if constant.any():
        where = (
            "the data is"
            if std.ndim == 0
            else f"column(s) {np.flatnonzero(constant).tolist()} are"
        )
        raise ValueError(f"{where} constant: there is no density along them; drop them")
    m, s = (torch.as_tensor(v).to(dtype).expand(event_shape).clone() for v in (mean, std))
    if not bool((m.isfinite() & s.isfinite() & (s > 0)).all()):
        raise ValueError(f"the data is too large or too small for {dtype}; rescale it")
    return m, s


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
        random = self.generator.get_state()
        return {"order": self.order, "position": self.position, "generator": random}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])


def fingerprint(data: Data) -> int:
    """Return a number that other data, or the same in another order, would hardly have."""
    every = torch.arange(len(data))
    ends = [
        _tensor(data[every[part]]).cpu().contiguous() for part in (slice(64), slice(-64, None))
    ]
    return zlib.crc32(b"".join(part.numpy().tobytes() for part in ends))
